"""The walk along the boundary against the exact smallest change of a linear network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.attacks._hyperplane import length, shortest
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.boundary_walk import BISECTIONS, WALK, BoundaryWalk
from holdfast.engine.random import Rng
from holdfast.evaluation.distances import minimal_distances
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain

NORMS = ("linf", "l2", "l1", "l0")


def linear(seed: int = 3) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Two classes, 24 coordinates, 16 inputs well inside the box."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 24, generator=generator))
        net[1].bias.zero_()
    x = 0.3 + 0.4 * torch.rand(16, 24, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    return net.eval(), x, y


@pytest.mark.parametrize("norm", NORMS)
def test_it_ends_at_the_smallest_change_of_a_linear_network(norm):
    net, x, y = linear()
    with torch.no_grad():
        logits = net(x)
    gap = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    w = net[1].weight[1 - y] - net[1].weight[y]
    best = length(shortest(norm, x, w, gap, (torch.tensor(0.0), torch.tensor(1.0))).double(), norm)
    walk = BoundaryWalk(steps=60, region=0.8)
    found = minimal_distances(net, x, y, norm=norm, attacks=[walk], budget=400)
    assert bool(found.distance.isfinite().all())
    slack = 1.01 if norm != "l0" else 1.0
    assert bool((found.distance <= slack * best + 1e-4).all()), found.distance / best


def state_of(norm: str, attack: BoundaryWalk, start: torch.Tensor | None = None):
    net, x, y = linear()
    allowed = Ball(norm, 30.0).bind(x, Domain(0.0, 1.0))
    rng = Rng.from_seed(0, len(x))
    with torch.no_grad():
        logits = net(x)
    problem = Problem(x, y, torch.full_like(y, -1), allowed, rng, logits, start=start)
    return net, attack.init(problem)


def asked(net: nn.Module, attack: BoundaryWalk, state):
    query = attack.ask(state)
    points = query.points.clone().requires_grad_(True)
    logits = net(points)
    empty = logits.new_empty(0)
    if query.objective is None:
        return attack.tell(state, Answer(logits.detach(), empty, empty))
    losses = query.objective.function(logits, *query.objective.rows)
    (gradient,) = torch.autograd.grad(losses.sum(), points)
    return attack.tell(state, Answer(logits.detach(), losses.detach(), gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_stays_within_its_trust_region(norm):
    attack = BoundaryWalk(steps=20, region=0.1)
    net, state = state_of(norm, attack)
    for _ in range(BISECTIONS):
        state = asked(net, attack, state)
    assert bool((state.kind == WALK).all())
    for _ in range(3):
        before = state.x
        state = asked(net, attack, state)
        moved = length(state.x - before, "l2")
        radius = (0.1 * state.scale).clamp_min(2**0.5 if norm == "l0" else 0.0)
        assert bool((moved <= radius * (1 + 1e-5)).all())
        assert float(moved.max()) > 0


def test_it_begins_at_the_last_point_of_the_bisection_that_fools():
    attack = BoundaryWalk(steps=20)
    net, x, y = linear()
    start = (torch.rand(16, 24, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    _, state = state_of("l2", attack, start)
    assert torch.equal(attack.ask(state).points, start)
    for _ in range(BISECTIONS):
        state = asked(net, attack, state)
    wrong = net(start).argmax(1) != y
    assert 0 < int(wrong.sum()) < 16
    begun = net(state.x).argmax(1) != y
    assert bool(begun[wrong].all())
    share = length(state.x - x, "l2") / length(start - x, "l2")
    with torch.no_grad():
        nearer = torch.lerp(x, start, (share - 2.0 ** (1 - BISECTIONS))[:, None] - 1e-4)
    assert bool((net(nearer).argmax(1) == y)[wrong].all())


def test_a_start_given_is_honoured():
    walk = BoundaryWalk(steps=10)
    start = torch.ones(16, 24)
    _, state = state_of("l1", walk, start)
    assert torch.equal(state.x, start)
