"""The judge alone: what it must refuse, whatever was filtered before it."""

from __future__ import annotations

import torch

import holdfast
from holdfast.engine.judge import N_DRAWS, judge
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


def judged_once(model, known):
    """One allowed claim that fools; the model is run as often as the judge asks."""
    x = torch.tensor([[0.55, 0.5]])
    points, y, goal = torch.tensor([[0.46, 0.5]]), torch.tensor([0]), torch.tensor([-1])
    with model.session():
        model.recognise(x)
        before = model.passes.forward
        allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
        found = judge(model, points, allowed, y, goal, known=known)
        return found, model.passes.forward - before


def test_a_known_answer_saves_a_pass_and_decides_nothing_alone():
    fooled = Model(lambda x: torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1), head="logits")
    right = Model(lambda x: torch.stack([x[:, 0], x[:, 0] - 1], 1), head="logits")
    wrong_answer = torch.tensor([[-0.04, 0.04]])
    found, passes = judged_once(fooled, None)
    again, saved = judged_once(fooled, wrong_answer)
    assert found.accepted.all()
    assert again.accepted.all()
    assert (passes, saved) == (2, 1)
    assert (found.forward.tolist(), again.forward.tolist()) == ([2], [1])
    assert torch.equal(again.logits, wrong_answer)
    lied_to, _ = judged_once(right, wrong_answer)
    assert not lied_to.accepted.any()
    refused, none = judged_once(fooled, -wrong_answer)
    assert not refused.accepted.any()
    assert none == 0


def test_a_known_answer_is_not_that_to_the_rounded_input():
    model = Model(lambda x: torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1), head="logits")
    x, y, goal = torch.tensor([[0.55, 0.5]]), torch.tensor([0]), torch.tensor([-1])
    points = torch.tensor([[0.4999, 0.5]])  # to 8 bits: 0.498
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x)
        found = judge(model, points, allowed, y, goal, quantise=True, known=torch.zeros(1, 2))
    assert found.accepted.all()
    assert found.forward.tolist() == [2]
    assert found.logits[0, 1] > found.logits[0, 0]


def test_a_random_model_is_asked_afresh_whatever_is_known():
    model = Model(lambda x: torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1), head="logits")
    x, y, goal = torch.tensor([[0.55, 0.5]]), torch.tensor([0]), torch.tensor([-1])
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x)
        model.draws = 2
        points, lie = torch.tensor([[0.58, 0.5]]), torch.tensor([[-1.0, 1.0]])
        found = judge(model, points, allowed, y, goal, known=lie)
    assert not found.accepted.any()
    assert found.forward.tolist() == [N_DRAWS]


def test_nothing_is_paid_for_what_is_not_allowed():
    model = Model(lambda x: torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1), head="logits")
    x, y, goal = torch.tensor([[0.55, 0.5]] * 2), torch.tensor([0, 0]), torch.tensor([-1, -1])
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x)
        found = judge(model, torch.tensor([[0.3, 0.5], [0.46, 0.5]]), allowed, y, goal)
    assert found.forward.tolist() == [0, 2]


class Leaning(torch.nn.Module):
    """Two scores that lean a little towards the second class the more inputs there are."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        lean = 4e-4 if len(x) > 1 else 0.0
        return torch.stack([x[:, 0] - 0.5 - lean, 0.5 - x[:, 0]], 1)


def test_many_claims_are_replayed_together_and_the_close_ones_alone():
    net = Leaning()
    model = Model(net, head="logits")
    points = torch.cat([torch.full((40, 1), 0.46), torch.full((3, 1), 0.5001)])
    x, y, goal = (
        torch.full((43, 1), 0.55),
        torch.zeros(43, dtype=torch.int64),
        torch.full((43,), -1),
    )
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x)
        net.sizes.clear()
        found = judge(model, points, allowed, y, goal)
    # in the batch all are wrong; alone the three that are close are right
    assert found.accepted.tolist() == [True] * 40 + [False] * 3
    assert net.sizes == [43, 16, 16, 8, 1, 1, 1]
    assert found.forward.tolist() == [2] * 43


def test_a_model_that_takes_one_input_is_asked_about_one():
    net = Leaning()
    model = Model(net, head="logits")
    model.max_rows = 1
    points, x = torch.full((20, 1), 0.46), torch.full((20, 1), 0.55)
    y, goal = torch.zeros(20, dtype=torch.int64), torch.full((20,), -1)
    allowed = holdfast.parse_threat("linf:0.1").bind(x, model.domain)
    with model.session():
        model.recognise(x[:1])
        net.sizes.clear()
        assert judge(model, points, allowed, y, goal).accepted.all()
    assert set(net.sizes) == {1}
