"""What errors are charged by is never less than the sum of absolute coefficients."""
# ruff: noqa: N806 - A are the coefficients of the literature

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.operator import Box
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import alpha_crown, crown, elements
from holdfast.verifiers.attack import Rows
from holdfast.verifiers.crown import State, absolute_sum
from holdfast.verifiers.element_slopes import sharpened
from holdfast.verifiers.elements import Elements
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search, charged


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e-300, 1e140])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_it_bounds_the_sum_in_rational_numbers(size, scale):
    torch.manual_seed(size)
    A = torch.randn(2, 3, size, dtype=torch.float64)
    A[0, 0] = 1.0  # all alike: the two norms agree up to the root of the size
    A[0, 1] = 0.0
    A[0, 2, 1:] = 0.0
    A = A * scale
    bound = absolute_sum(A)
    for row, value in zip(A.flatten(0, 1).tolist(), bound.flatten().tolist(), strict=True):
        exact = sum(Fraction(abs(a)) for a in row)
        assert Fraction(value) * (1 + Fraction(1, 10**12)) >= exact
        assert value <= 2 * size * float(exact) + 1e-140


def test_terms_of_the_rows_own_are_charged():
    """The least value of ``D x + d`` stays below the exact one, which uncharged it does not."""
    torch.manual_seed(0)
    p, n = 12, 400
    lower = torch.randn(n, p, dtype=torch.float64)
    upper = lower + torch.rand_like(lower)
    D, C = torch.randn(n, 1, p, dtype=torch.float64), torch.zeros(n, 1, 1, dtype=torch.float64)
    # Constants that cancel the rest, as at the border of what can be proven.
    d = -BoxRegion(lower, upper).minimum(D)
    rows = charged(Rows(lower, upper, C, D, d), 2 * (2 * p + 64) * 2.0**-53)
    beyond = 0
    for i in range(n):
        exact = Fraction(float(d[i, 0]))
        for a, low, high in zip(*(t[i].flatten().tolist() for t in (D, lower, upper)), strict=True):
            exact += min(Fraction(a) * Fraction(low), Fraction(a) * Fraction(high))
        value = BoxRegion(lower[i : i + 1], upper[i : i + 1]).minimum(D[i : i + 1])
        beyond += Fraction(float(value + d[i])) > exact
        assert Fraction(float(value + rows.d[i])) <= exact
    assert beyond > 0


def test_a_search_charges_the_rows_of_its_property():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    D, C = np.random.default_rng(0).normal(size=(2, 3)), np.eye(2)
    clause = Clause(-np.ones(3), np.ones(3), C, np.array([0.5, -0.25]), D)
    graph, prop = capture(net, torch.zeros(1, 3)).to(torch.float64), Property((clause,))
    search = Search(graph, prop, lambda *_: None, float("inf"))
    plain = Rows.of(prop, torch.float64)
    least = (plain.D.abs().sum(2) + plain.d.abs()) * torch.finfo(torch.float64).eps
    assert bool((search.rows.d <= plain.d - least).all())


UNIT = 1e-3


@pytest.fixture
def convolutions(monkeypatch):
    """A network, its inputs and boxes; from here on rounding errors of 0.001 are charged."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 1, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    graph, region = capture(net, x.float(), fold=False).to(torch.float64), BoxRegion(x - 0.1, x)
    state = propagate(graph, region)
    for module in (crown, elements):
        monkeypatch.setattr(module, "gamma", lambda *_: UNIT / 2)
    return graph, region, state


def own(state, index, pairs):
    """What the element's own sums have to be charged, ``(r,)``."""
    return 0.99 * UNIT * state.magnitudes[index][pairs[:, 0], 0]


def test_bounds_of_elements_are_charged(convolutions):
    graph, region, state = convolutions
    index = 3
    pairs = torch.ones(2, graph.nodes[index].size).nonzero()
    ends = []
    for rounding in (False, True):
        box = state.boxes[index]
        open_ = State([*state.boxes], state.magnitudes)
        open_.boxes[index] = Box(box.lower - 9, box.upper + 9)
        found = Elements(graph, index, open_, region, None, rounding)
        low, high = found.bounds(pairs)
        found.choose({})
        ends.append(torch.stack([low, -high, *found.least(pairs).unbind(1)]))
    assert bool((ends[0] - ends[1] >= own(state, index, pairs)).all())


def test_bounds_by_optimised_slopes_are_charged(convolutions):
    graph, region, state = convolutions
    index = 3
    loose = torch.ones(2, graph.nodes[index].size, dtype=torch.bool)
    ends = []
    for magnitudes in ([], state.magnitudes):
        boxes = list(state.boxes)
        boxes[index] = Box(boxes[index].lower - 9, boxes[index].upper + 9)
        exact = (graph, State(boxes, magnitudes), region)
        found = sharpened(exact, exact, graph.nodes[index], loose, 2)
        ends.append(torch.stack([found.lower, -found.upper]).flatten(2))
    charge = own(state, index, loose.nonzero()).reshape(1, 2, -1)
    assert bool((ends[0] - ends[1] >= charge).all())


def test_bounds_by_shared_optimised_slopes_are_charged(convolutions):
    graph, region, state = convolutions
    index = len(graph.nodes) - 1
    A = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    single = graph.to(torch.float32)
    ends = []
    for magnitudes in ([], state.magnitudes):
        args = (A, State(state.boxes, magnitudes), region, region.to(torch.float32), 2)
        ends.append(alpha_crown._optimised_bound(graph, single, index, *args))
    assert bool((ends[0] - ends[1] >= 0.99 * UNIT * state.magnitudes[index]).all())
