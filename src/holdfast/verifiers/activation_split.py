"""Branch and bound over activations (beta-CROWN), for networks with many inputs.

A domain is a clause with some neurons' ranges cut in two. Its bound is optimised over slopes and the
multipliers of its cuts in float32 and, once it seems positive, evaluated in float64 with rounding errors.
Neurons to cut are chosen by filtered smart branching (De Palma et al., 2021, arXiv:2104.06718): a cheap
score picks candidates, both halves of each are bounded once, the best worse half wins.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Activation, Box
from holdfast.verifiers.alpha_crown import (
    Choices, default_choices, low_precision, optimise, sharpen,
)
from holdfast.verifiers.attack import descend
from holdfast.verifiers.crown import Cuts, State, pull_back
from holdfast.verifiers.problem import Counterexample, Leaf, Split
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

ROOT_STEPS = 60
SHARPEN_STEPS = 12
DOMAIN_STEPS = 12
CANDIDATES = 6
# Elements of all activations of a batch of domains; a few megabytes fit the caches of small machines.
BATCH_ELEMENTS = 1 << 17


@final
@dataclass(slots=True)
class _Domain:
    """A clause under cuts, with the choices it starts from.

    Attributes:
        clause: Position in the property.
        splits: Cuts so far.
        parameters: Choices by activation, ``(q, *shape)`` in float32.
        multipliers: One per cut.
        value: Lower bound, in float32.
    """

    clause: int
    splits: tuple[Split, ...]
    parameters: dict[int, Tensor]
    multipliers: list[float] = field(default_factory=list)
    value: float = -np.inf


@final
@dataclass(frozen=True, slots=True)
class _Root:
    """What all domains of one input box share, in float64 and in float32 (``low``)."""

    region: BoxRegion
    state: State
    low_region: BoxRegion
    low_state: State
    weights: dict[int, Tensor]


def split_activations(search: Search, clauses: Tensor) -> Counterexample | bool | None:
    """Decides clauses that share one input box.

    Args:
        search: The property and its clock.
        clauses: Positions of the clauses in the property ``(c,)``.

    Returns:
        A counterexample, True when all clauses are proven, False without time, None when no cut is left.
    """
    root, open_clauses = _root(search, clauses, None)
    # Certificates rest on the default rule for bounds, which their checker can follow by itself.
    if open_clauses and not search.keep_leaves and not search.is_over():
        with torch.no_grad():
            state = sharpen(search.graph, root.region, root.state, SHARPEN_STEPS)
        root, open_clauses = _root(search, torch.tensor(open_clauses), state)
    if search.keep_leaves:
        search.bounds.update(_read_bounds(search.graph, root.state))
    pool: list[tuple[float, int, _Domain]] = []
    counter = itertools.count()
    batch = _batch_size(search.graph)
    domains = [_Domain(c, (), {}) for c in open_clauses]
    is_root, stuck = True, False
    while domains or pool:
        if search.is_over():
            return False
        if not domains:
            take = [heapq.heappop(pool)[2] for _ in range(min(batch // 2, len(pool)))]
            domains, lost = _cut(search, root, take)
            stuck = stuck or lost
            if not domains:
                continue
        while domains:
            part, domains = domains[:batch], domains[batch:]
            found = _solve(search, root, part, ROOT_STEPS if is_root else DOMAIN_STEPS)
            if isinstance(found, Counterexample):
                return found
            for domain in found:
                heapq.heappush(pool, (domain.value, next(counter), domain))
            if search.is_over():
                return False
        is_root = False
        search.lower = min([d.value for _, _, d in pool], default=search.lower)
    return None if stuck else True


def _read_bounds(graph: Graph, state: State) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Flat bounds of every node that a non-linear node reads."""
    nodes = sorted({i for n in graph.nodes if not n.op.is_affine for i in n.inputs})
    return {
        i: (state.boxes[i].lower[0].flatten().numpy(), state.boxes[i].upper[0].flatten().numpy())
        for i in nodes
    }


def _batch_size(graph: Graph) -> int:
    elements = sum(n.size for n in graph.nodes if not n.op.is_affine)
    return max(4, min(256, BATCH_ELEMENTS // max(1, elements)))


@torch.no_grad()
def _root(search: Search, clauses: Tensor, state: State | None) -> tuple[_Root, list[int]]:
    """Bounds of the whole box, and the clauses they leave open."""
    graph, rows = search.graph, search.rows
    shape = (1, *graph.input_shape)
    first = int(clauses[0])
    region = BoxRegion(rows.lower[first].reshape(shape), rows.upper[first].reshape(shape))
    state = propagate(graph, region) if state is None else state
    C, d = rows.C[clauses], rows.d[clauses]
    A = C.reshape(1, -1, *graph.output_shape)
    bound = pull_back(graph, len(graph.nodes) - 1, A, state)
    A0 = bound.A if rows.D is None else bound.A + rows.D[clauses].reshape(bound.A.shape)
    value = (region.minimum(A0) + bound.constant).reshape(d.shape) + d
    value, best = value.max(1)
    weights = {int(c): torch.eye(d.shape[1], dtype=d.dtype)[b] for c, b in zip(clauses, best, strict=True)}
    root = _Root(region, state, region.to(torch.float32), low_precision(state), weights)
    for c, v in zip(clauses.tolist(), value.tolist(), strict=True):
        if v > 0 and search.keep_leaves:
            search.leaves.append(_leaf(search, root, _Domain(c, (), {}), v))
    search.domains += 1
    return root, [c for c, v in zip(clauses.tolist(), value.tolist(), strict=True) if v <= 0]


def _leaf(search: Search, root: _Root, domain: _Domain, value: float) -> Leaf:
    clause = search.prop.clauses[domain.clause]
    weights = np.zeros(len(clause.d))
    chosen = root.weights[domain.clause].nonzero().flatten().tolist()
    for i in chosen:  # rows past the clause's own are copies of its last
        weights[min(i, len(weights) - 1)] += float(root.weights[domain.clause][i])
    slopes = {i: t[0].double().numpy() for i, t in domain.parameters.items()}
    return Leaf(
        domain.clause, clause.lower, clause.upper, weights, value, domain.splits, slopes, tuple(domain.multipliers)
    )


@final
@dataclass(frozen=True, slots=True)
class _Batch:
    """Domains as tensors: coefficients ``(n, 1, *output)``, constants, boxes, cuts, choices."""

    A: Tensor
    D: Tensor | None
    d: Tensor
    state: State
    region: BoxRegion
    cuts: dict[int, Cuts]
    places: list[list[tuple[int, int]]]


def _batch(search: Search, root: _Root, domains: Sequence[_Domain], low: bool) -> _Batch:
    """Tensors of domains in float32 (``low``) or float64."""
    dtype = torch.float32 if low else torch.float64
    rows, n = search.rows, len(domains)
    weights = torch.stack([root.weights[d.clause] for d in domains])
    clause = torch.tensor([d.clause for d in domains])
    A = (weights.unsqueeze(1) @ rows.C[clause]).to(dtype)
    D = None if rows.D is None else (weights.unsqueeze(1) @ rows.D[clause]).to(dtype)
    d = (weights * rows.d[clause]).sum(1, keepdim=True).to(dtype)
    state, region = (root.low_state, root.low_region) if low else (root.state, root.region)
    boxes = [Box(b.lower.expand(n, *b.lower.shape[1:]), b.upper.expand(n, *b.upper.shape[1:])) for b in state.boxes]
    magnitudes = [None if m is None else m.expand(n, 1) for m in state.magnitudes]
    cuts, places = _cuts(domains, dtype)
    for node, cut in cuts.items():
        boxes[node] = _clip(boxes[node], cut)
    shape = (n, *search.graph.input_shape)
    wide = BoxRegion(region.lower.expand(shape), region.upper.expand(shape))
    return _Batch(A.reshape(n, 1, *search.graph.output_shape), D, d, State(boxes, magnitudes), wide, cuts, places)


def _cuts(
    domains: Sequence[_Domain], dtype: torch.dtype
) -> tuple[dict[int, Cuts], list[list[tuple[int, int]]]]:
    """Cuts by node, and for every domain where each of its splits stands (node, place)."""
    counts: dict[tuple[int, int], int] = {}
    places: list[list[tuple[int, int]]] = []
    for i, domain in enumerate(domains):
        row = []
        for split in domain.splits:
            place = counts.get((i, split.node), 0)
            counts[i, split.node] = place + 1
            row.append((split.node, place))
        places.append(row)
    cuts = {}
    for node in sorted({node for _, node in counts}):
        most = max(c for (_, j), c in counts.items() if j == node)
        index = np.zeros((len(domains), most), np.int64)
        sign, point = np.zeros(index.shape), np.zeros(index.shape)
        for i, domain in enumerate(domains):
            for split, (at, place) in zip(domain.splits, places[i], strict=True):
                if at == node:
                    index[i, place], point[i, place] = split.neuron, split.point
                    sign[i, place] = 1.0 if split.above else -1.0
        cuts[node] = Cuts(torch.from_numpy(index), torch.from_numpy(sign).to(dtype), torch.from_numpy(point).to(dtype))
    return cuts, places


def _clip(box: Box, cut: Cuts) -> Box:
    """The box within the cuts; a cut outside the box makes the side empty, which any bound may use."""
    shape = box.lower.shape
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    high, low = torch.full_like(cut.point, torch.inf), torch.full_like(cut.point, -torch.inf)
    lower = lower.scatter_reduce(1, cut.index, torch.where(cut.sign > 0, cut.point, low), "amax")
    upper = upper.scatter_reduce(1, cut.index, torch.where(cut.sign < 0, cut.point, high), "amin")
    return Box(torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape))


def _choices(search: Search, domains: Sequence[_Domain], batch: _Batch) -> Choices:
    """The domains' own choices where they have some, else the defaults."""
    start = len(search.graph.nodes) - 1
    choices = default_choices(search.single, batch.state, start)
    parameters = {
        i: torch.stack([d.parameters[i] if i in d.parameters else t[:, j, 0] for j, d in enumerate(domains)], 1).unsqueeze(2)
        for i, t in choices.parameters.items()
    }
    multipliers = {node: torch.zeros_like(cut.point) for node, cut in batch.cuts.items()}
    for i, domain in enumerate(domains):
        for value, (node, place) in zip(domain.multipliers, batch.places[i], strict=False):
            multipliers[node][i, place] = value
    return Choices(parameters, multipliers)


def _solve(
    search: Search, root: _Root, domains: list[_Domain], steps: int
) -> Counterexample | list[_Domain]:
    """Bounds domains; returns those still open, best choices inside, or a counterexample."""
    graph, start = search.single, len(search.graph.nodes) - 1
    batch = _batch(search, root, domains, low=True)
    choices = _choices(search, domains, batch)
    region = _Shifted(batch.region, batch.D, batch.d)
    scale = 1e-5
    choices, value = optimise(graph, start, batch.A, batch.state, region, choices, batch.cuts, steps, target=scale)
    search.domains += len(domains)
    for i, domain in enumerate(domains):
        domain.parameters = {j: t[:, i, 0].clone() for j, t in choices.parameters.items()}
        domain.multipliers = [float(choices.multipliers[node][i, place]) for node, place in batch.places[i]]
        domain.value = float(value[i, 0])
    seems = [d for d in domains if d.value > 0]
    proven = _evaluate(search, root, seems) if seems else []
    kept = [d for d in domains if d.value <= 0] + [d for d, v in zip(seems, proven, strict=True) if v <= 0]
    if search.keep_leaves:
        search.leaves += [_leaf(search, root, d, v) for d, v in zip(seems, proven, strict=True) if v > 0]
    return _look(search, batch, choices, domains) or kept


@final
@dataclass(frozen=True, slots=True)
class _Shifted:
    """A region whose minimum includes a property's own input coefficients and constants."""

    region: BoxRegion
    D: Tensor | None
    d: Tensor

    @property
    def is_box(self) -> bool:
        return True

    def hull(self) -> Box:
        return self.region.hull()

    def minimum(self, A: Tensor) -> Tensor:
        return self.region.minimum(self._full(A)) + self.d

    def argmin(self, A: Tensor) -> Tensor:
        return self.region.argmin(self._full(A))

    def _full(self, A: Tensor) -> Tensor:
        return A if self.D is None else A + self.D.reshape(A.shape)

    def rows(self, index: Tensor | slice) -> _Shifted:
        return _Shifted(self.region.rows(index), None if self.D is None else self.D[index], self.d[index])

    def to(self, dtype: torch.dtype) -> _Shifted:
        return _Shifted(self.region.to(dtype), None if self.D is None else self.D.to(dtype), self.d.to(dtype))


@torch.no_grad()
def _evaluate(search: Search, root: _Root, domains: list[_Domain]) -> list[float]:
    """Bounds in float64 with rounding errors, at the choices that the search ended with."""
    batch = _batch(search, root, domains, low=False)
    parameters = {
        i: torch.stack([d.parameters[i] for d in domains], 1).unsqueeze(2).double()
        for i in domains[0].parameters
    }
    multipliers = {node: torch.zeros_like(cut.point) for node, cut in batch.cuts.items()}
    for i, domain in enumerate(domains):
        for value, (node, place) in zip(domain.multipliers, batch.places[i], strict=True):
            multipliers[node][i, place] = value
    bound = pull_back(
        search.graph, len(search.graph.nodes) - 1, batch.A, batch.state,
        parameters=parameters, cuts=batch.cuts, multipliers=multipliers,
    )
    value = _Shifted(batch.region, batch.D, batch.d).minimum(bound.A) + bound.constant
    return value.flatten().tolist()


def _look(search: Search, batch: _Batch, choices: Choices, domains: list[_Domain]) -> Counterexample | None:
    """Descends from the corners that minimise the domains' bounds."""
    if not search.look:
        return None
    with torch.no_grad():
        bound = pull_back(
            search.single, len(search.graph.nodes) - 1, batch.A, batch.state,
            parameters=choices.parameters, cuts=batch.cuts, multipliers=choices.multipliers, rounding=False,
        )
        x = _Shifted(batch.region, batch.D, batch.d).argmin(bound.A)[:, 0].flatten(1)
    worst = sorted(range(len(domains)), key=lambda i: domains[i].value)[:8]
    clause = torch.tensor([domains[i].clause for i in worst])
    low, high = search.rows32.lower[clause], search.rows32.upper[clause]
    x, _ = descend(search.single, search.rows32, clause, x[worst], low, high, 5)
    return search.check(clause, x)


@torch.no_grad()
def _cut(search: Search, root: _Root, domains: list[_Domain]) -> tuple[list[_Domain], bool]:
    """Both halves of every domain at its best candidate; the flag tells of domains without any."""
    batch = _batch(search, root, domains, low=True)
    options = _candidates(search, domains, batch)
    stuck = any(not o for o in options)
    trials, owners = [], []
    for i, (domain, splits) in enumerate(zip(domains, options, strict=True)):
        for split in splits:
            for above in (True, False):
                half = replace(split, above=above)
                trials.append(_Domain(
                    domain.clause, (*domain.splits, half), domain.parameters, [*domain.multipliers, 0.0]
                ))
            owners.append(i)
    if not trials:
        return [], stuck
    values = torch.cat([
        _trial(search, root, trials[i : i + 4 * len(domains)]) for i in range(0, len(trials), 4 * len(domains))
    ]).reshape(-1, 2)
    # Progress that already proves a half counts no more than the proof.
    worse, better = values.clamp(max=0.0).amin(1), values.clamp(max=0.0).amax(1)
    score = worse + 0.1 * better
    children = []
    for i in range(len(domains)):
        mine = [j for j, owner in enumerate(owners) if owner == i]
        if mine:
            best = max(mine, key=lambda j: float(score[j]))
            children += trials[2 * best : 2 * best + 2]
    return children, stuck


def _trial(search: Search, root: _Root, trials: list[_Domain]) -> Tensor:
    """Bounds ``(n,)`` at the parents' choices."""
    batch = _batch(search, root, trials, low=True)
    choices = _choices(search, trials, batch)
    bound = pull_back(
        search.single, len(search.graph.nodes) - 1, batch.A, batch.state,
        parameters=choices.parameters, cuts=batch.cuts, multipliers=choices.multipliers, rounding=False,
    )
    return (_Shifted(batch.region, batch.D, batch.d).minimum(bound.A) + bound.constant).flatten()


def _candidates(search: Search, domains: list[_Domain], batch: _Batch) -> list[list[Split]]:
    """Cuts with the largest loss of relaxation, weighted by the coefficient after it."""
    graph, n = search.single, len(domains)
    nodes = [k for k in graph.nodes if isinstance(k.op, Activation) and k.op.can_split]
    choices = _choices(search, domains, batch)
    bound = pull_back(
        graph, len(graph.nodes) - 1, batch.A, batch.state, parameters=choices.parameters, cuts=batch.cuts,
        multipliers=choices.multipliers, watch=frozenset(k.index for k in nodes), rounding=False,
    )
    scores, points = [], []
    for node in nodes:
        box = batch.state.boxes[node.inputs[0]]
        assert isinstance(node.op, Activation)
        point = node.op.branch_point(box)
        A = bound.watched.get(node.index)
        gap = _loss(node.op, box, point, A) if A is not None else torch.zeros_like(point)
        scores.append(torch.where(node.op.is_loose(box), gap, -1.0).flatten(1))
        points.append(point.flatten(1))
    score, point = torch.cat(scores, 1), torch.cat(points, 1)
    sources = np.concatenate([np.stack([np.full(k.size, k.inputs[0]), np.arange(k.size)], 1) for k in nodes])
    top = score.topk(min(CANDIDATES, score.shape[1]), 1)
    return [
        [
            Split(int(sources[j, 0]), int(sources[j, 1]), float(point[i, j]), True)
            for j, v in zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True) if v >= 0
        ]
        for i in range(n)
    ]


def _loss(op: Activation, box: Box, point: Tensor, A: Tensor) -> Tensor:
    """``|A|`` times the distance of the line in use from the function at the cut, ``(n, *shape)``."""
    lines = op.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), None)
    at = point.unsqueeze(1)
    truth = op.run(point).unsqueeze(1)
    above = lines.upper_slope * at - truth
    if lines.upper_intercept is not None:
        above = above + lines.upper_intercept
    below = truth - lines.lower_slope * at
    if lines.lower_intercept is not None:
        below = below - lines.lower_intercept
    return (A.relu() * below + (-A).relu() * above).squeeze(1)
