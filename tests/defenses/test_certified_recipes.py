"""Certified training: what each recipe becomes at its ends, and that its bounds hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.attacks.pgd import PGD
from holdfast.defenses import _certified
from holdfast.defenses.awp import AWP
from holdfast.defenses.crown_ibp import CROWNIBP
from holdfast.defenses.ibp import IBP
from holdfast.defenses.mtl_ibp import MTLIBP
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.defenses.sabr import SABR
from holdfast.errors import ThreatError
from holdfast.hardening.step import own_batch, own_step
from holdfast.model import Model
from holdfast.verifiers.bounds import bounds, margins

STEPS = PGD(steps=3)


def lent(mean=None, seed=0):
    """A step on a small network with batch norm, and a batch."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=0.0),  # statistics that stay, so that losses can be compared
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    step = own_step(Model(net, mean=mean), "linf:0.1")
    y = torch.arange(6) % 3
    x = 0.3 * torch.rand(6, 1, 4, 4)
    x[torch.arange(6), 0, y] += 0.6  # a bright row for each class
    return step, own_batch(x, y)


@pytest.fixture(scope="module")
def shared():
    """Tracing takes a second: once for all tests that do not change the weights."""
    return lent()


@pytest.fixture
def toy(shared):
    step, batch = shared
    step.network.eval()
    return replace(step, notes={}, state={}), batch


def value(scalar):
    return float(scalar.detach())


def loss(recipe, step, batch):
    return value(recipe(step, batch))


def test_bounds_are_the_verifiers_own(toy):
    step, batch = toy
    found = _certified.bounded(step, batch, batch.x, 1.0)
    step.network.eval()
    rows = margins(batch.y, 3)
    proof = bounds(step.network, batch.x, 0.1, C=rows, method="interval").lower
    worst = torch.cat([torch.zeros(6, 1), -proof], 1).logsumexp(1).mean()
    assert value(found.loss) <= value(worst) + 1e-5  # the last layer is merged: never looser
    sharp = bounds(step.network, batch.x, 0.1, C=rows, method="crown-ibp").lower
    linear = _certified.bounded(step, batch, batch.x, 1.0, linear=1.0)
    expected = torch.cat([torch.zeros(6, 1), -sharp], 1).logsumexp(1).mean()
    assert value(linear.loss) == pytest.approx(value(expected), rel=1e-4)


def test_no_attack_beats_the_bound(toy):
    step, batch = toy
    bound = value(_certified.bounded(step, batch, batch.x, 1.0).loss)
    for seed in range(3):
        x_adv = replace(step, seed=seed).attack(batch, PGD(steps=20))
        attacked = F.cross_entropy(step.logits_without_gradient(x_adv), batch.y)
        assert value(attacked) <= bound


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_without_a_radius_it_is_cross_entropy(toy, kappa):
    step, batch = toy
    step.network.eval()
    plain = value(F.cross_entropy(step.network(batch.x), batch.y))
    zero = replace(step, ramp=0.0)
    zero.logits = lambda x: step.network.eval()(x)  # batch statistics aside
    for recipe in (IBP(kappa), CROWNIBP(kappa), MTLIBP(0.5), SABR(0.5)):
        assert loss(recipe, zero, batch) == pytest.approx(plain, rel=1e-5)


def test_ibp_weighs_clean_and_worst_case_by_the_ramp(toy):
    step, batch = toy
    for ramp, kappa in ((1.0, 0.5), (0.5, 0.75)):
        now = replace(step, ramp=ramp)
        worst = value(_certified.bounded(now, batch, batch.x, 1.0).loss)
        clean = value(batch.cross_entropy(now.logits(batch.x)).mean())
        expected = kappa * clean + (1 - kappa) * worst
        assert loss(IBP(), now, batch) == pytest.approx(expected, rel=1e-4)
        step.network.eval()


def test_ends_of_the_mixtures(toy):
    step, batch = toy
    pure = loss(IBP(kappa=0), step, batch)
    assert loss(SABR(share=1), step, batch) == pure
    assert loss(MTLIBP(alpha=1), step, batch) == pure
    assert loss(CROWNIBP(kappa=0, beta=0), step, batch) == pure
    assert loss(CROWNIBP(kappa=0, beta=1), step, batch) < pure


def test_mtl_ibp_without_a_bound_is_pgd_training(toy):
    step, batch = toy
    crafted = MTLIBP(0, STEPS).craft(step, batch)
    assert torch.equal(crafted.adversarial, PGDTraining(STEPS).craft(step, batch).adversarial)
    assert loss(MTLIBP(0, STEPS), step, batch) == loss(PGDTraining(STEPS), step, batch)


def test_small_boxes_lie_in_the_ball_and_shrink_to_pgd(toy):
    step, batch = toy
    crafted = SABR(share=0.4, attack=STEPS).craft(step, batch)
    assert float((crafted.adversarial - batch.x).abs().max()) <= 0.06 + 1e-6
    point = SABR(share=0.0, attack=STEPS)
    x_adv = PGDTraining(STEPS).craft(step, batch).adversarial
    assert torch.equal(point.craft(step, batch).adversarial, x_adv)
    at_point = F.cross_entropy(step.logits_without_gradient(x_adv), batch.y)
    assert loss(point, step, batch) == pytest.approx(value(at_point), rel=1e-5)
    shares = [0.0, 0.3, 0.6, 1.0]
    losses = [value(_certified.bounded(step, batch, batch.x, share).loss) for share in shares]
    assert losses == sorted(losses)


def test_training_radius_in_units_of_the_threat(toy):
    step, batch = toy
    larger = IBP(kappa=0, radius=1.5)
    twice = replace(step, threats=(type(step.threat)("linf", 0.15),))
    assert loss(larger, step, batch) == pytest.approx(loss(IBP(kappa=0), twice, batch), rel=1e-6)


def test_bounds_follow_the_weights_and_the_normalisation():
    step, batch = lent(mean=[0.5])
    before = loss(IBP(kappa=0), step, batch)
    optimiser = torch.optim.Adam(step.weights(), 0.01)
    for i in range(80):
        step.ramp = IBP().ramp(i / 80, 0.8)  # at once at the full radius it ends at ln 3
        optimiser.zero_grad()
        IBP(kappa=0).update(step, batch)
        optimiser.step()
    assert loss(IBP(kappa=0), step, batch) < before / 2
    step.network.eval()
    proof = bounds(step.network, batch.x, 0.1, C=margins(batch.y, 3), method="interval").lower
    assert float(step.notes["proven"]) >= float((proof > 0).all(1).float().mean()) > 0


def test_weight_perturbation_of_a_certified_recipe():
    step, batch = lent()
    crafted = IBP(kappa=0)
    here = loss(crafted, step, batch)
    there = value(AWP(IBP(kappa=0), gamma=0.05).update(step, batch))
    assert there > here
    assert loss(crafted, step, batch) == here


def test_the_ramp_waits_then_rises_straight():
    assert [IBP().ramp(p, 0.5) for p in (0.0, 0.05, 0.275, 0.5, 1.0)] == pytest.approx(
        [0.0, 0.0, 0.5, 1.0, 1.0]
    )


def test_what_is_no_ball_is_refused(toy):
    class Rotation:
        norm = "rotation"

        def describe(self):
            return "rotation:30"

    step, batch = toy
    step = replace(step, threats=(Rotation(),))
    with pytest.raises(ThreatError, match=r"not rotation:30.*pgd_training"):
        IBP().loss(step, batch)
