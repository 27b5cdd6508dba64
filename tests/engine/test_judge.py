"""The judge alone: what it must refuse, whatever was filtered before it."""

from __future__ import annotations

import torch

import holdfast
from holdfast.engine.judge import judge
from holdfast.model import Model


def test_refuses_what_is_outside_unchanged_or_right():
    model = Model(lambda x: torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1), head="logits")
    x = torch.tensor([[0.55, 0.5]]).repeat(4, 1)
    # allowed and fooling; fooling from outside the ball; unchanged; allowed and right
    points = torch.tensor([[0.46, 0.5], [0.3, 0.5], [0.55, 0.5], [0.58, 0.5]])
    y, goal = torch.zeros(4, dtype=torch.int64), torch.full((4,), -1)
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x)
        found = judge(model, points, allowed, y, goal)
        wrong_label = judge(model, x, allowed, 1 - y, goal)
    assert found.accepted.tolist() == [True, False, False, False]
    assert not wrong_label.accepted.any()
