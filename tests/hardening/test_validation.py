"""What chooses the weights: proofs where bounds are trained, attacks otherwise."""

from types import SimpleNamespace
from typing import Any

import hardening_tools as small
import pytest
import torch
from torch import nn

from holdfast import registry
from holdfast.attacks.pgd import PGD
from holdfast.contracts.defenses import shortened
from holdfast.defenses.awp import AWP
from holdfast.defenses.ibp import IBP
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.hardening.events import Validated
from holdfast.hardening.harden import harden
from holdfast.hardening.step import own_batch, own_step
from holdfast.hardening.validation import Score, proven, trains_bounds, validate
from holdfast.threat import parse_threat

EPS = 0.02


def test_proofs_of_a_linear_model_are_exact():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = small.digits().fetch(range(400))
    x = 0.1 + 0.8 * x  # no side of the domain in the way
    w, b = net[1].weight.detach(), net[1].bias.detach()
    y = (x.flatten(1) @ w.T + b).argmax(1)
    z = x.flatten(1) @ w.T + b
    sizes = (w[y].unsqueeze(1) - w).abs().sum(2)
    margins = z.gather(1, y[:, None]) - z - EPS * sizes
    exact = margins.scatter(1, y[:, None], 1.0) > 0
    step = own_step(net, f"linf:{EPS}")
    step.ramp = 0.1  # proofs are at the full radius all the same
    found = proven(step, own_batch(x, y))
    assert torch.equal(found, exact.all(1))
    assert 0 < int(found.sum()) < len(y)


def linear():
    """A linear network, inputs and the labels it gives, and what holds at twice EPS ``(n,)``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, _ = small.digits().fetch(range(200))
    x = 0.1 + 0.8 * x
    w, z = net[1].weight.detach(), net(x).detach()
    y = z.argmax(1)
    margins = z.gather(1, y[:, None]) - z - 2 * EPS * (w[y].unsqueeze(1) - w).abs().sum(2)
    return net, x, y, (margins.scatter(1, y[:, None], 1.0) > 0).all(1)


def test_a_sample_has_to_hold_under_every_threat():
    net, x, y, holds = linear()
    step = own_step(net, f"linf:{2 * EPS}")
    step.threats = (*step.threats, parse_threat(f"linf:{0.5 * EPS}"))  # the last one is the easier
    assert torch.equal(proven(step, own_batch(x, y)), holds)
    assert 0.2 * len(y) < int(holds.sum()) < 0.9 * len(y)
    samples: Any = SimpleNamespace(validation=lambda n: [(torch.arange(n), x[:n], y[:n])])
    score = validate(step, samples, len(y), 10, is_certified=True)
    expected = float(holds.float().mean())
    assert (score.clean, score.n) == (1.0, len(y))
    assert expected - 1e-6 <= score.robust <= expected + 0.02  # attacks may miss a few
    assert score.verified == pytest.approx(expected)


def test_what_is_proven_withstands_attacks():
    net = small.fitted()
    x, y = small.digits().fetch(range(200))
    stands = proven(own_step(net, f"linf:{EPS}"), own_batch(x, y))
    fooled = PGD(steps=20)(net, x, y, f"linf:{EPS}")
    assert 0 < int(stands.sum()) < len(y)
    assert bool((net(fooled).argmax(1) == y)[stands].all())


def test_the_score_of_a_certified_recipe_is_what_is_proven():
    attacked, bounded = Score(0.9, 0.8, 100, verified=0.1), Score(0.8, 0.5, 100, verified=0.4)
    assert bounded.value > attacked.value
    assert Score(0.9, 0.8, 100).value > Score(0.8, 0.7, 100).value


@pytest.mark.parametrize(
    ("recipe", "is_certified"),
    [(IBP(), True), (AWP(IBP()), True), (PGDTraining(), False), (AWP(PGDTraining()), False)],
    ids=lambda value: getattr(getattr(value, "card", None), "name", str(value)),
)
def test_certified_recipes_are_known_through_their_wrappers(recipe, is_certified):
    assert trains_bounds(recipe) is is_certified


def test_a_certified_training_keeps_the_weights_that_prove_most(tmp_path):
    events: list = []
    result = harden(
        small.fitted(3),
        small.digits(500),
        threat="linf:0.05",
        recipe=IBP(),
        epochs=12,
        audit=False,
        updates_per_round=12,
        out=tmp_path,
        on_event=events.append,
    )
    rounds = [e for e in events if isinstance(e, Validated)]
    best = max(rounds, key=lambda e: (e.verified_accuracy, e.clean_accuracy))
    assert best.verified_accuracy > rounds[0].verified_accuracy
    assert f"{best.verified_accuracy:.1%} of {best.n}" in result.card.chosen_round
    assert [r.verified for r in result.card.rounds] == [e.verified_accuracy for e in rounds]


@pytest.mark.parametrize("name", sorted(registry.recipes()))
def test_epochs_and_batch_size_are_as_they_were_asked_for(name):
    """180 samples to train on: 8 batches an epoch, the last one smaller."""
    card = registry.recipes()[name].card
    threats = [small.THREAT if "linf" in card.norms else "l2:0.5"]
    threats += ["l2:0.5"] if card.n_threats == 0 else []
    result = harden(
        small.fitted(1),
        small.digits(200),
        threat=threats,
        recipe=shortened(registry.recipe(name)),
        epochs=2,
        batch_size=25,
        validation_steps=1,
        audit=False,
    )
    assert result.card.settings["batch_size"] == 25
    assert result.card.updates == 2 * 8
    assert result.card.epochs == 2
