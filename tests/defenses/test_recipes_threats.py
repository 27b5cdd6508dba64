"""Recipes against several threats, and against noise: what each of them must do."""

from dataclasses import replace

import pytest
import torch
from recipe_tools import batch_of, step_for

from holdfast.attacks.apgd import APGD
from holdfast.attacks.pgd import PGD
from holdfast.defenses.eat import EAT, draw, extremes
from holdfast.defenses.gaussian import Gaussian
from holdfast.defenses.max import MAX
from holdfast.defenses.msd import MSD
from holdfast.defenses.smooth_adv import SmoothAdv
from holdfast.threat import parse_threat

STEPS = PGD(steps=3)


# ------------------------------------------------------------------ several threats


def test_max_and_msd_are_at_least_as_bad_as_each_threat():
    threats = ("linf:0.1", "l2:0.5", "l1:1")
    step, batch = step_for(*threats), batch_of()

    def loss(x):
        return batch.cross_entropy(step.logits_without_gradient(x))

    worst = loss(MAX(STEPS).craft(step, batch).adversarial)
    for threat in step.threats:
        alone = loss(step.attack(batch, STEPS, threat=threat))
        assert (worst >= alone).all()
    walk = MSD(steps=5).craft(step, batch).adversarial
    inside = torch.stack([step.bind(batch, t).contains(walk) for t in step.threats])
    assert inside.any(0).all()
    assert (loss(walk) > loss(batch.x)).all()


def test_eat_draws_extremes_by_how_often_they_win():
    threats = tuple(parse_threat(t) for t in ("l2:0.5", "l1:1", "linf:0.1"))
    assert [t.norm for t in extremes(threats)] == ["linf", "l1"]
    assert [t.norm for t in extremes(threats[:2])] == ["l2", "l1"]
    step = step_for("linf:0.1", "l1:1")
    step.state["eat/errors"] = torch.tensor([0.6, 0.2], dtype=torch.float64)
    drawn = torch.tensor([draw(replace(step, index=i), 2) for i in range(400)])
    assert float((drawn == 0).float().mean()) == pytest.approx(0.75, abs=0.06)


def test_eat_remembers_the_error_of_the_threat_it_met():
    step, batch = step_for("linf:0.1", "l1:1"), batch_of()
    recipe = EAT(APGD(steps=3), memory=0.5)
    crafted = recipe.craft(step, batch)
    chosen = int(crafted.crafted["eat/chosen"])
    recipe.loss(step, crafted)
    wrong = float((step.logits(crafted.adversarial).argmax(1) != batch.y).float().mean())
    errors = step.state["eat/errors"]
    assert float(errors[chosen]) == pytest.approx(0.25 + 0.5 * wrong)
    assert float(errors[1 - chosen]) == 0.5


# ------------------------------------------------------------------ noise


def test_smooth_adv_without_steps_is_training_on_noise():
    step, batch = step_for("l2:0.5"), batch_of()
    crafted = SmoothAdv(steps=0, draws=1).craft(step, batch)
    assert torch.equal(crafted.adversarial, batch.x)
    noisy = crafted.adversarial + crafted.crafted["smooth_adv/noise"][0]
    assert torch.equal(noisy, Gaussian().craft(step, batch).adversarial)


def test_smooth_adv_raises_the_loss_of_the_smoothed_classifier():
    step, batch = step_for("l2:0.5"), batch_of()
    crafted = SmoothAdv(draws=4).craft(step, batch)
    noise = crafted.crafted["smooth_adv/noise"]

    def loss(x):
        z = torch.stack([step.logits_without_gradient(x + n) for n in noise])
        return -z.softmax(2).mean(0).gather(1, batch.y[:, None]).log().squeeze(1)

    assert (loss(crafted.adversarial) > loss(batch.x)).all()
    assert step.bind(batch).contains(crafted.adversarial).all()
