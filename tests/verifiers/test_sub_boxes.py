"""Parts of an input box: rows sound and better with own slopes, parts joined, clipped, halved."""
# ruff: noqa: N806 - A and C are the matrices of the literature

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.operator import Box
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import input_split, propagation, sub_boxes
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


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_clipped_parts_keep_what_an_open_clause_allows(seed):
    _, parts, bounder = setting(seed, 0.4)
    left = bounder.improved(bounder.bound(parts)).without_proven()
    number = torch.arange(len(left.parts))
    left = replace(left, parts=replace(left.parts, boxes=[Box(number, number)]))
    box, (A, b) = left.parts, left.limits
    x = box.lower + torch.rand(500, *box.lower.shape).double() * (box.upper - box.lower)
    allowed = ((A @ x[:, :, None, :, None]).squeeze(4) + b <= 0).all(3) & box.open
    assert bool(allowed.any(0).all(1).any())  # somewhere both clauses leave room
    kept = input_split._clipped(left).parts
    assert float((kept.upper - kept.lower).sum()) < float((box.upper - box.lower).sum())
    place = torch.full((len(box),), -1)
    place[kept.boxes[0].lower] = torch.arange(len(kept))
    for i in range(len(box)):
        points = allowed[:, i]
        if place[i] < 0:
            assert not bool(points.any())
            continue
        at = int(place[i])
        inside = ((x[:, i] >= kept.lower[at]) & (x[:, i] <= kept.upper[at])).all(1)
        assert bool((inside[:, None] | ~points).all())
        assert bool((kept.open[at] | ~points.any(0)).all())


def some_parts(n, worst):
    lower = torch.rand(n, P).double()
    boxes = [Box(lower[:, :2], lower[:, 1:] + 1)]
    return SubBoxes(lower, lower + 1, torch.rand(n, 2) > 0.5, boxes, worst)


def test_parts_are_taken_from_the_top_and_none_is_lost():
    torch.manual_seed(0)
    sizes = 10, 200, 30, 300, 100
    stack = [some_parts(n, -float(i)) for i, n in enumerate(sizes)]
    before = torch.cat([p.lower for p in stack])
    taken = []
    while stack:
        popped = input_split._pop(stack)
        assert 0 < len(popped) <= input_split.BATCH
        assert torch.equal(popped.upper, popped.lower + 1)
        assert torch.equal(popped.boxes[0].lower, popped.lower[:, :2])
        assert torch.equal(popped.boxes[0].upper, popped.upper[:, 1:])
        taken.append(popped)
    assert len(taken[0]) == 100
    after = torch.cat([p.lower for p in taken])
    assert torch.equal(after.sort(0).values, before.sort(0).values)


@pytest.mark.parametrize("n", [1, 12])
@torch.no_grad()
def test_split_parts_cover_the_whole(n):
    _, parts, bounder = setting(2)
    left = bounder.bound(parts.rows(torch.arange(n)))
    split = input_split._split(left)
    assert len(split) == n * (8 if n < 8 else 2)
    volume = (split.upper - split.lower).prod(1)
    assert float(volume.sum()) == pytest.approx(float((left.parts.upper - left.parts.lower)
                                                      .prod(1).sum()))  # fmt: skip
    x = parts.lower[:n] + torch.rand(200, n, P).double() * (parts.upper - parts.lower)[:n]
    y = x.reshape(-1, 1, P)
    inside = ((y >= split.lower) & (y <= split.upper)).all(2)
    assert bool(inside.any(1).all())
    box = split.boxes[0]  # of the input node: each half lies in its parent's
    assert bool(((split.lower >= box.lower) & (split.upper <= box.upper)).all())


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
