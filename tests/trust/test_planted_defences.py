"""Defences that only mislead attackers: each must be seen through, with nobody's help."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast
from holdfast.contracts import masking
from holdfast.modalities import load
from holdfast.reports._trust import Confidence

EPS = "linf:0.2"
CASCADE = (
    {"attack": "apgd", "loss": "ce", "steps": 20},
    {"attack": "apgd", "loss": "dlr", "steps": 10, "n_targets": 2},
    {"attack": "square", "queries": 20},
)
N = 40
CLOSE = 0.02 + 1e-9


def small(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, 1, 1), act(), nn.Conv2d(12, 24, 3, 2, 1), act(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(384, 64), act(), nn.Linear(64, 10))


class Bench:
    """An undefended network on digits, and its defended copies."""

    accuracy: ClassVar[float]

    def __init__(self) -> None:
        torch.set_num_threads(1)
        seen, unseen = load("digits:train"), load("digits:test")
        self.x, self.y = seen.fetch(range(len(seen)))
        self.samples = unseen.fetch(range(N))
        self.net = self.fitted(small())

    def fitted(self, net: nn.Sequential) -> nn.Sequential:
        masking.fit(net, self.x, F.one_hot(self.y, 10).float(), epochs=5)
        return net

    def audit(self, net: nn.Module, threat: str = EPS, **options) -> holdfast.Report:
        options = {"cascade": CASCADE, "curve_steps": 0, **options}
        return holdfast.audit(net, self.samples, threat, **options)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def undefended(bench) -> float:
    result = bench.audit(bench.net).threats[EPS]
    assert result.trust.confidence is Confidence.TRUSTED
    return result.robust_accuracy.value


def quantised(bench):
    return masking.QuantisedInput(bench.net)


def steps(bench):
    return masking.StepInput(bench.net)


def solver(bench):
    return masking.InnerSolver(bench.net)


def rippled(bench):
    return masking.RippledInput(bench.net)


def compressed(bench):
    return masking.CompressedInput(bench.net, block=4)


def dithered(bench):
    return masking.DitheredInput(bench.net)


def distilled(bench):
    return masking.distilled(small, bench.x, bench.y, epochs=6)


CASES = {
    quantised: "hard_steps",
    steps: "hard_steps",
    solver: "inner_solver",
    rippled: "shattered_gradients",
    compressed: "hard_steps",
    dithered: "randomness",
    distilled: "saturated_softmax",
}


SLOW = (solver, quantised, rippled, compressed, dithered)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=pytest.mark.slow if make in SLOW else ()) for make in CASES],
    ids=lambda make: make.__name__,
)
def test_defence_is_seen_through(bench, undefended, make):
    report = bench.audit(make(bench))
    result = report.threats[EPS]
    trust = result.trust
    assert trust.confidence is Confidence.LOWERED
    assert CASES[make] in {reason.check for reason in trust.reasons}
    assert trust.first is not None
    assert trust.first.value > undefended + 0.1
    assert result.robust_accuracy.value <= undefended + CLOSE
    assert "Don't trust the first number" in str(report)


NEAR = "linf:0.08"  # where some samples of the undefended network survive


def sparsified(bench):
    return masking.sparsified(bench.net, bench.x, 0.5)


def random_resizing(bench):
    return masking.RandomResizing(bench.net, 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [sparsified, random_resizing], ids=lambda make: make.__name__)
def test_defence_that_hides_little(bench, make):
    bound = bench.audit(bench.net, NEAR).threats[NEAR].robust_accuracy.value
    result = bench.audit(make(bench), NEAR).threats[NEAR]
    assert result.trust.confidence is Confidence.LOWERED
    reason = {sparsified: "hard_steps", random_resizing: "randomness"}[make]
    assert reason in {r.check for r in result.trust.reasons}
    assert result.robust_accuracy.value <= bound + CLOSE


@pytest.mark.slow
def test_winners_take_all(bench):
    """Its first number is low already on so small a network: nothing is left to mistrust."""
    torch.manual_seed(0)
    net = bench.fitted(small(lambda: masking.WinnersTakeAll(0.1)))
    bound = bench.audit(bench.net, NEAR).threats[NEAR].robust_accuracy.value
    assert bench.audit(net, NEAR).threats[NEAR].robust_accuracy.value <= bound + CLOSE


def test_undefended_network_is_trusted_where_samples_survive(bench):
    result = bench.audit(bench.net, NEAR).threats[NEAR]
    assert result.robust_accuracy.value > 0.3
    assert result.trust.confidence is Confidence.TRUSTED
    assert not result.looks[0].added
