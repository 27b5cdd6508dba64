"""An attack that searches without gradients, if only at first, beats those that follow them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import holdfast
from holdfast import PGD
from holdfast.attacks.base import Card
from holdfast.attacks.square_pgd import SquarePGD
from holdfast.engine.cascade import Step
from holdfast.engine.ledger import Standing
from holdfast.engine.suspicion import n_beyond_gradients
from holdfast.record import Outcome
from holdfast.reports._trust import Confidence
from holdfast.threat import Access

N = 6


class Moat(nn.Module):
    """The gradient at x leads away from the only side where class 1 wins."""

    def forward(self, x):
        u = x.flatten(1)[:, 0] - 0.5
        gain = -0.2 * u + 5 * (u - 0.05).clamp_min(0)
        return torch.stack([torch.full_like(gain, 0.1), gain], 1)


def audited(trust: str = "look", steps: int = 20):
    x = torch.full((N, 1, 2, 2), 0.5)
    x[:, :, 1, 1] = torch.linspace(0.2, 0.8, N)[:, None]  # no sample twice
    data = (x, torch.zeros(N, dtype=torch.int64))
    cascade = [
        {"attack": "pgd", "loss": "margin", "steps": steps, "random_start": False},
        {"attack": "square_pgd", "queries": 30, "steps": 5},
    ]
    options = {"cascade": cascade, "curve_steps": 0, "trust": trust}
    return holdfast.audit(Moat(), data, "linf:0.11", **options)


def test_what_a_blind_search_alone_finds_is_a_sign_of_masking():
    trust = audited().threats["linf:0.11"].trust
    assert trust.confidence is Confidence.LOWERED
    assert "black_box_wins" in {reason.check for reason in trust.reasons}
    assert trust.first is not None
    assert trust.first.value == 1.0
    assert [step.attack.partition("(")[0] for step in trust.lowered] == ["square_pgd"]
    assert trust.lowered[0].after == 0.0


def test_it_is_no_sign_where_gradients_had_no_fair_chance():
    trust = audited(steps=18).threats["linf:0.11"].trust
    assert "black_box_wins" not in {reason.check for reason in trust.reasons}


class FarSide(Moat):
    """At the near end of the moat, where the gradient leads nowhere."""

    def forward(self, x):
        return super().forward(x) + torch.tensor([0.1, 0.0])


@pytest.mark.parametrize("trust", ["look", "off"])
def test_in_l0_it_is_no_sign(trust):
    """There a random search finds more than gradients on sound models as well."""
    x = torch.full((N, 1, 2, 2), 0.5)
    x[:, :, 0, 0] = 0.0
    x[:, :, 1, 1] = torch.linspace(0.2, 0.8, N)[:, None]
    data = (x, torch.zeros(N, dtype=torch.int64))
    cascade = [
        {"attack": "pgd", "loss": "margin", "steps": 20, "random_start": False},
        {"attack": "sparse_rs", "queries": 40},
    ]
    report = holdfast.audit(FarSide(), data, "l0:1", cascade=cascade, curve_steps=0, trust=trust)
    result = report.threats["l0:1"]
    assert [s.n_broken for s in result.stages if "sparse_rs" in s.attack] == [N]
    checks = {reason.check for reason in result.trust.reasons} if result.trust else set()
    assert "black_box_wins" not in checks
    assert "scores_beat_gradients" not in {finding.code for finding in report.warnings}


@pytest.mark.parametrize(("backward", "expected"), [(19, 0), (20, 1)])
def test_a_fair_chance_is_counted_in_gradients(backward, expected):
    steps = [Step(0, "a", PGD()), Step(1, "b", SquarePGD())]
    standing = Standing.fresh(1)
    for stage, paid, outcome in ((0, backward, Outcome.SURVIVED), (1, 50, Outcome.BROKEN)):
        values = {"stage": stage, "outcome": outcome, "forward": 99, "backward": paid}
        standing.attempt(attempt(**values))
    assert n_beyond_gradients(steps, standing) == expected


def attempt(**values):
    rest = {"sample": 0, "zero_gradients": 0, "rejected": 0, "margin": 0.0, "distance": None}
    return SimpleNamespace(**rest | values)


def test_the_warning_says_so_where_the_checks_are_off():
    report = audited("off")
    assert "scores_beat_gradients" in {finding.code for finding in report.warnings}


@pytest.mark.parametrize(
    ("access", "is_blind", "expected"),
    [
        (Access.GRADIENTS, False, False),
        (Access.GRADIENTS, True, True),
        (Access.SCORES, False, True),
        (Access.LABELS, False, True),
    ],
)
def test_who_sees_less(access, is_blind, expected):
    card = Card(name="a", title="b", paper="c", access=access, is_blind=is_blind)
    assert card.sees_less is expected
