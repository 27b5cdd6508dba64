"""Inner attacks of two steps: what training makes of them."""

import pytest
import torch
from torch import nn

from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import gentle
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.hardening.step import own_batch, own_step
from holdfast.threat import parse_threat


def test_two_steps_are_gentle_where_nothing_is_said():
    threat = parse_threat("linf:0.2")
    attack = gentle(PGD(steps=2), threat)
    assert attack == PGD(steps=2, step_size=pytest.approx(0.15))
    for other in (PGD(steps=2, step_size=0.1), PGD(steps=3), FGSM()):
        assert gentle(other, threat) is other
    assert gentle(PGD(steps=2), parse_threat("l2:1")) == PGD(steps=2)


def test_pgd_training_takes_them_so_at_every_radius():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    step = own_step(net, "linf:0.1")
    batch = own_batch(torch.full((40, 1, 8, 8), 0.5), torch.arange(40) % 3)
    for step.ramp in (1.0, 0.5):
        moved = (PGDTraining(PGD(steps=2)).craft(step, batch).adversarial - batch.x).abs()
        radius = 0.1 * step.ramp
        assert float(moved.max()) == pytest.approx(radius, rel=1e-3)
        inside = float((moved < 0.99 * radius).float().mean())
        assert inside == pytest.approx(0.25, abs=0.03)  # from further away than 0.5 of the radius
