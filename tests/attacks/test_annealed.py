"""Noise that shrinks with the steps, and what it is for."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks.annealed import Annealed
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.pgd import PGD
from holdfast.contracts.masking import RippledInput
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.threat import Domain, parse_threat

N, DIM = 8, 64


def problem(eps: float = 0.1) -> Problem:
    x = torch.full((N, DIM), 0.5)
    allowed = parse_threat(f"linf:{eps}").bind(x, Domain())
    y = torch.zeros(N, dtype=torch.int64)
    return Problem(x, y, y - 1, allowed, Rng.from_seed(3, N), torch.zeros(N, 2))


def test_noise_and_steps_shrink_to_nothing():
    attack = Annealed(steps=40)
    state = attack.init(problem())
    moved, noise, done = [], [], []
    for _ in range(41):
        query = attack.ask(state)
        points = query.points
        done.append(float(query.progress.mean()))
        noise.append(float((points - state.x).abs().mean()))
        after = attack.tell(state, Answer(torch.zeros(N, 2), torch.zeros(N), torch.ones(N, DIM)))
        moved.append(float((after.x - state.x).abs().max()))
        state = after
    assert bool(state.finished.all())
    assert done == pytest.approx([step / 40 for step in range(41)])
    assert noise[0] > 0.005
    assert noise[8] < noise[0] / 2
    assert noise[32:] == [0.0] * 9
    assert moved[0] == pytest.approx(0.025, rel=1e-3)


def test_steps_shrink_where_gradients_keep_turning():
    attack = Annealed(steps=40, momentum=0.0)
    state, moved = attack.init(problem()), []
    for step in range(41):
        gradient = torch.full((N, DIM), 1.0 - 2.0 * (step % 2))
        after = attack.tell(state, Answer(torch.zeros(N, 2), torch.zeros(N), gradient))
        moved.append(float((after.x - state.x).abs().max()))
        state = after
    assert moved[0] == pytest.approx(0.025, rel=1e-3)
    assert moved[20] == pytest.approx(0.005, rel=1e-2)
    assert moved[40] == pytest.approx(0.001, rel=1e-2)


def reached(attack) -> float:
    """Mean of the last points along the slope of a rippled plane: 1 is the set's far corner."""
    slope = torch.where(torch.arange(DIM) % 2 == 0, 1.0, -1.0)
    start = problem()
    state = attack.init(start)
    wave = RippledInput(torch.nn.Identity())
    for _ in range(attack.max_queries):
        query = attack.ask(state)
        z = query.points.clone().requires_grad_(True)
        score = (wave(z) * slope).sum(1)
        (gradient,) = torch.autograd.grad(score.sum(), z)
        state = attack.tell(state, Answer(torch.zeros(N, 2), score.detach(), gradient))
    return float((((state.x - start.x) * slope).mean() / 0.1).detach())


def test_it_crosses_a_rippled_surface_where_plain_steps_are_stuck():
    assert reached(Annealed(steps=100)) > 0.85
    assert reached(PGD(steps=100, loss="margin")) < 0.5


@pytest.mark.parametrize("options", [{"steps": 0}, {"momentum": 1.0}, {"noise": -1.0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(PlanError, match=next(iter(options))):
        Annealed(**options)
