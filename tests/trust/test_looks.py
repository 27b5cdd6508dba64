"""Single checks on made-up probes, and which samples are looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.trust import eps_curve, examination
from holdfast.trust.eps_curve import EpsCurve


@pytest.mark.parametrize(("share", "is_doubt"), [(0.0, True), (0.4, True), (0.5, False)])
def test_accuracy_that_stands_at_large_changes_is_doubted(monkeypatch, share, is_doubt):
    tried = []
    monkeypatch.setattr(eps_curve, "whole", lambda few: torch.tensor([1.0, 4.0]))
    monkeypatch.setattr(eps_curve, "fooled", lambda few, radius: tried.append(radius) or share)
    monkeypatch.setattr(eps_curve, "neighbours", lambda probe: ())
    probe: Any = SimpleNamespace(
        allowed=SimpleNamespace(radius=torch.tensor([0.01, 0.04])), is_counting=False
    )
    probe.few = lambda n: probe
    doubt = EpsCurve().look(probe)
    assert (doubt is not None) == is_doubt
    torch.testing.assert_close(tried[0], torch.tensor([0.1, 0.4]))
    if doubt is not None:
        assert doubt.figures["times"] == pytest.approx(10.0)
        assert f"{share:.0%}" in doubt.text


def test_only_what_is_right_unbroken_unproven_and_not_the_goal_is_looked_at():
    n = 64
    nothing = np.zeros(n, dtype=bool)
    is_correct, is_broken, is_verified = ~nothing, nothing.copy(), nothing.copy()
    goal = np.full(n, -1)
    is_correct[::4], is_broken[1::8], is_verified[2::8], goal[3] = False, True, True, 7
    ledger = SimpleNamespace(is_correct=is_correct, goal=goal)
    seen = SimpleNamespace(y=torch.full((n,), 7), keys=torch.arange(n).flip(0))
    context: Any = SimpleNamespace(ledger=ledger, seen=seen)
    standing: Any = SimpleNamespace(is_broken=is_broken, is_verified=is_verified)
    wanted = [i for i in range(n) if i % 4 and i % 8 not in (1, 2) and i != 3][::-1]
    rows = examination._rows(context, standing)
    assert rows == wanted[: len(rows)]
    assert len(rows) >= 8
