"""Rows of parts of an input box: sound, better with slopes of their own, the same kept together."""
# ruff: noqa: N806 - A and C are the matrices of the literature

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import propagation, sub_boxes
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.replay import graph_runtime
from holdfast.verifiers.search import Search
from holdfast.verifiers.sub_boxes import RowBounder, SubBoxes

N, P = 40, 3


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Linear(P, 20), nn.Linear(20, 20), nn.Linear(20, 4)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(3)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


def setting(seed, width=0.6):
    """A search with two clauses of two and three rows, one of them over inputs; and parts."""
    graph = capture(network(seed), torch.zeros(1, P), fold=False)
    rng = np.random.default_rng(seed)
    low, high = -np.ones(P), np.ones(P)
    D = rng.normal(size=(3, P))
    clauses = (
        Clause(low, high, rng.normal(size=(2, 4)), rng.normal(size=2)),
        Clause(low, high, rng.normal(size=(3, 4)), rng.normal(size=3), D),
    )
    exact = graph.to(torch.float64)
    search = Search(exact, Property(clauses), graph_runtime(graph), float("inf"))
    lower = torch.from_numpy(rng.uniform(-1, 1 - width, (N, P)))
    parts = SubBoxes(lower, lower + width, torch.ones(N, 2, dtype=torch.bool))
    return search, parts, RowBounder(search, torch.arange(2))


def values(search, parts, count=200):
    """Rows at points of each part ``(count, n, c, r)``, and the points."""
    x = parts.lower + torch.rand(count, N, P, dtype=torch.float64) * (parts.upper - parts.lower)
    y = search.graph(x.reshape(-1, P)).reshape(count, N, 1, 4)
    rows = search.rows
    total = (rows.C @ y.unsqueeze(4)).squeeze(4) + rows.d
    return total + (rows.D @ x.reshape(count, N, 1, P, 1)).squeeze(4), x


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_values_and_limits_lie_below_the_rows(seed):
    search, parts, bounder = setting(seed)
    first = bounder.bound(parts)
    better = bounder.improved(first)
    true, x = values(search, parts)
    assert bool((better.value <= true.amax(3)).all())
    A, b = better.limits
    limit = (A @ x.reshape(*x.shape[:2], 1, P, 1)).squeeze(4) + b
    assert bool((limit <= torch.cat([true, true], 3)).all())
    assert bool((better.value >= first.value).all())
    assert float((better.value - first.value).mean()) > 0.01
    assert torch.equal(better.A, first.A)


class WithInputs(nn.Module):
    """The network's outputs and its inputs side by side."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.cat([self.net(x), x], 1)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_inputs_in_rows_count_as_outputs_would(seed):
    search, parts, bounder = setting(seed)
    found = bounder.improved(bounder.bound(parts))
    graph = capture(WithInputs(network(seed)), torch.zeros(1, P), fold=False)
    wide = [
        Clause(c.lower, c.upper, np.hstack([c.C, np.zeros((len(c.d), P)) if c.D is None else c.D]),
               c.d)
        for c in search.prop.clauses
    ]  # fmt: skip
    other = Search(graph.to(torch.float64), Property(tuple(wide)), search.confirm, float("inf"))
    twin = RowBounder(other, torch.arange(2))
    wanted = twin.improved(twin.bound(parts))
    torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.limits[0], wanted.limits[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_best_row_has_the_value(seed):
    _, parts, bounder = setting(seed)
    first = bounder.bound(parts)
    better = bounder.improved(first)
    assert not torch.equal(better.best, first.best)
    A, b = better.limits
    least = BoxRegion(parts.lower, parts.upper).minimum(A.flatten(1, 2)).reshape(b.shape) + b
    by_row = least.reshape(N, 2, 2, -1).amax(2)  # with default and with own slopes
    value = by_row.gather(2, better.best.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(value, better.value, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_wrong_slope_is_noticed(monkeypatch):
    search, parts, bounder = setting(0)
    pull = sub_boxes.pull_back

    def wrong(*args, parameters=None, **kwargs):
        shifted = None if parameters is None else {i: t + 0.5 for i, t in parameters.items()}
        return pull(*args, parameters=shifted, **kwargs)

    monkeypatch.setattr(sub_boxes, "pull_back", wrong)
    A, b = bounder.improved(bounder.bound(parts)).limits
    true, x = values(search, parts)
    limit = (A @ x.reshape(*x.shape[:2], 1, P, 1)).squeeze(4) + b
    assert bool((limit > torch.cat([true, true], 3)).any())


@torch.no_grad()
def test_proven_clauses_close_and_their_parts_drop_out():
    _, parts, bounder = setting(1, 0.2)
    bounded = bounder.bound(parts)
    left = bounded.without_proven()
    assert 0 < len(left.parts) < N
    still = (bounded.value <= 0).any(1)
    assert torch.equal(left.parts.lower, parts.lower[still])
    assert torch.equal(left.parts.open, (bounded.value <= 0)[still])


@torch.no_grad()
def test_crowded_rows_are_bounded_alike(monkeypatch):
    search, parts, _ = setting(2)
    region = BoxRegion(parts.lower, parts.upper)
    together = propagate(search.graph, region)
    monkeypatch.setattr(propagation, "CROWD", N + 1)
    alone = propagate(search.graph, region)
    x = parts.lower + torch.rand(100, N, P).double() * (parts.upper - parts.lower)
    seen = [z.reshape(100, N, -1) for z in nodes(search.graph, x.reshape(-1, P))]
    assert len(seen) == len(together.boxes)
    first = True
    for box, other, z in zip(together.boxes, alone.boxes, seen, strict=True):
        assert bool((box.lower <= z).all() and (box.upper >= z).all())
        # Alone, neurons are left as soon as they are decided; then later ones differ.
        loose = (other.lower < 0) & (other.upper > 0) & first
        first = first and not bool(loose.any())
        torch.testing.assert_close(box.lower[loose], other.lower[loose], rtol=0, atol=1e-9)


def nodes(graph, x):
    """Values of all nodes."""
    found = []
    for node in graph.nodes:
        found.append(node.op.run(*(found[i] for i in node.inputs)) if node.inputs else x)
    return found
