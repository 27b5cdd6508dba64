"""Minima over boxes cut with halfspaces, against linear programs; bounds made again over them."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.crown import pull_back
from holdfast.verifiers.halfspace import CutBox
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.tightening import tighten


def cut_box(n=3, p=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    lower = torch.randn(n, p, generator=rng, dtype=torch.float64)
    upper = lower + torch.rand(n, p, generator=rng, dtype=torch.float64)
    h = torch.randn(n, p, generator=rng, dtype=torch.float64)
    # A point of the box lies on the halfspace's border, so that the cut is real and never empty.
    inner = lower + 0.3 * (upper - lower)
    return CutBox(lower, upper, h, -(h * inner).sum(1))


def program(region, A):
    """The true minimum by HiGHS, ``(n, k)``."""
    rows = []
    for i in range(len(A)):
        sides = list(zip(region.lower[i].tolist(), region.upper[i].tolist(), strict=True))
        found = [
            linprog(a.numpy(), region.h[i].numpy()[None], [-float(region.g[i])], bounds=sides)
            for a in A[i]
        ]
        rows.append([f.fun for f in found])
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("seed", range(3))
def test_the_dual_meets_the_linear_program(seed):
    region = cut_box(seed=seed)
    rng = torch.Generator().manual_seed(seed)
    A = torch.randn(3, 5, 6, generator=rng, dtype=torch.float64)
    true, found = program(region, A), region.minimum(A)
    assert bool((found <= true + 1e-9).all())
    torch.testing.assert_close(found, true, atol=1e-3, rtol=1e-3)
    box = BoxRegion(region.lower, region.upper).minimum(A)
    assert bool((found >= box - 1e-9).all())
    assert float((found - box).max()) > 0.1


def test_a_wrong_side_is_caught():
    region = cut_box()
    A = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wrong = replace(region, h=-region.h, g=-region.g)
    assert bool((wrong.minimum(A) > program(region, A) + 1e-6).any())


def test_no_halfspace_is_the_box():
    region = cut_box()
    A = torch.randn(3, 4, 6, dtype=torch.float64)
    free = replace(region, h=torch.zeros_like(region.h), g=torch.full((3,), -1.0).double())
    box = BoxRegion(region.lower, region.upper)
    torch.testing.assert_close(free.minimum(A), box.minimum(A))


@pytest.fixture(scope="module", name="case")
def _case():
    """A network, its state over a box, the linear bound of a row, and inputs that violate it."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 1))
    graph = capture(net.eval(), torch.zeros(1, 4), fold=False).to(torch.float64)
    region = BoxRegion(*(torch.full((1, 4), v).double() for v in (-0.4, 0.4)))
    x = 0.8 * torch.rand(20000, 4, dtype=torch.float64) - 0.4
    y = graph(x)[:, 0]
    limit = float(y.quantile(0.005))
    state = propagate(graph, region)
    A = torch.ones(1, 1, 1, dtype=torch.float64)
    bound = pull_back(graph, len(graph.nodes) - 1, A, state)
    return graph, region, state, bound.A[:, 0], bound.constant[:, 0] - limit, x[y <= limit]


def outside(graph, state, x):
    """How many values of violating inputs leave the boxes."""
    pairs = zip(graph.values(x), state.boxes, strict=True)
    return sum(int(((v < b.lower - 1e-9) | (v > b.upper + 1e-9)).sum()) for v, b in pairs)


def test_new_bounds_hold_where_a_violation_is(case):
    graph, region, state, h, g, x = case
    found, empty = tighten(graph, state, CutBox(region.lower, region.upper, h, g))
    assert not bool(empty.any())
    assert outside(graph, found, x) == 0
    width = [float((b.upper - b.lower).sum()) for b in found.boxes]
    before = [float((b.upper - b.lower).sum()) for b in state.boxes]
    assert sum(width) < 0.95 * sum(before)


def test_a_halfspace_that_cuts_too_much_is_caught(case):
    graph, region, state, h, g, x = case
    found, _ = tighten(graph, state, CutBox(region.lower, region.upper, h, g + 1.0))
    assert outside(graph, found, x) > 0


def test_nothing_left_is_told(case):
    graph, region, state, h, g, _ = case
    _, empty = tighten(graph, state, CutBox(region.lower, region.upper, h, g + 100.0))
    assert bool(empty.all())
