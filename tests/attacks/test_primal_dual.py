"""Proximal steps at an adaptive price, against the exact smallest change of a linear network."""

from __future__ import annotations

import torch
from torch import nn

from holdfast.attacks._hyperplane import length, shortest
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.primal_dual import INNER, PrimalDual, _shrunk
from holdfast.engine.random import Rng
from holdfast.evaluation.distances import minimal_distances
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


def linear(scale: float = 1.0) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Two classes, 24 coordinates, 16 inputs well inside the box."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    with torch.no_grad():
        net[1].weight.copy_(scale * torch.randn(2, 24, generator=generator))
        net[1].bias.zero_()
    x = 0.3 + 0.4 * torch.rand(16, 24, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    return net.eval(), x, y


def found(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    attack = PrimalDual(steps=200)
    return minimal_distances(net, x, y, norm="l1", attacks=[attack], budget=430).distance


def test_it_ends_at_the_smallest_change_of_a_linear_network():
    net, x, y = linear()
    with torch.no_grad():
        logits = net(x)
    gap = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    w = (net[1].weight[1 - y] - net[1].weight[y]).detach()
    best = length(shortest("l1", x, w, gap, (torch.tensor(0.0), torch.tensor(1.0))).double(), "l1")
    distance = found(net, x, y)
    assert bool((distance >= best * (1 - 1e-5)).all())
    assert float(distance.sum() / best.sum()) < 1.05, distance / best


def test_the_scale_of_the_logits_does_not_matter():
    net, x, y = linear()
    larger, *_ = linear(scale=64.0)
    torch.testing.assert_close(found(larger, x, y), found(net, x, y), rtol=1e-3, atol=1e-3)


def test_the_price_rises_where_the_point_fools_and_falls_elsewhere():
    net, x, y = linear()
    attack = PrimalDual(steps=10)
    allowed = Ball("l1", 24.0).bind(x, Domain(0.0, 1.0))
    with torch.no_grad():
        logits = net(x)
    problem = Problem(x, y, torch.full_like(y, -1), allowed, Rng.from_seed(0, len(x)), logits)
    state = attack.init(problem)
    fooling = logits.clone()
    fooling[:8] = -logits[:8]
    told = attack.tell(state, Answer(fooling, torch.zeros(16), torch.ones_like(x)))
    assert bool((told.log_price[:8] > state.log_price[:8]).all())
    assert bool((told.log_price[8:] < state.log_price[8:]).all())
    assert bool((told.price[:8] > state.price[:8]).all())


def test_a_proximal_step_is_its_iterations():
    generator = torch.Generator().manual_seed(4)
    change, spread = torch.randn(3, 7, generator=generator), torch.rand(3, 7, generator=generator)
    price = torch.tensor([0.01, 0.1, 0.3])
    h = spread / spread.amax(1, keepdim=True)
    z = change
    for _ in range(INNER):
        z = z - h * (z - change)
        z = z - price[:, None] * change.sign()
    stays = (z.sign() == change.sign()) & (z.abs() > price[:, None])
    assert 5 < int(stays.sum()) < 21
    torch.testing.assert_close(_shrunk(change, spread, price)[stays], z[stays])
