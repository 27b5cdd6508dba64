"""Branch and bound over activations (beta-CROWN), for networks with many inputs.

A domain is a clause with some neurons' ranges cut in two. Its bound is optimised over slopes and
the multipliers of its cuts in float32 and, once it seems positive, evaluated in float64 with
rounding errors.
Neurons to cut are chosen by filtered smart branching (De Palma et al., 2021, arXiv:2104.06718): a
cheap score picks candidates, both halves of each are bounded once, the best worse half wins.
"""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.verifiers.alpha_crown import Choices, optimise, sharpen
from holdfast.verifiers.attack import descend
from holdfast.verifiers.crown import LinearBound, State, pull_back
from holdfast.verifiers.domains import (
    CANDIDATES,
    Anchor,
    Batch,
    Domain,
    Root,
    Shifted,
    batch_of,
    candidates,
    choices_of,
)
from holdfast.verifiers.halfspace import CutBox
from holdfast.verifiers.problem import Counterexample, Leaf
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search
from holdfast.verifiers.tightening import tighten

ROOT_STEPS = 60
SHARPEN_STEPS = 12
DOMAIN_STEPS = 12
# Rounds of new bounds at the root, each as long as the bound of the clause rises by a tenth.
NARROWINGS = 4
LEAST_GAIN = 0.9
# Open domains from which on the nearest to a proof go first, so that they get fewer.
POOL = 4096
# Elements of all activations of a batch of domains; a few megabytes fit the caches of small
# machines.
BATCH_ELEMENTS = 1 << 17


def split_activations(search: Search, clauses: Tensor) -> Counterexample | bool | None:
    """Decides clauses that share one input box.

    Args:
        search: The property and its clock.
        clauses: Positions of the clauses in the property ``(c,)``.

    Returns:
        A counterexample, True when all clauses are proven, False without time, None when no cut is
        left.
    """
    root, open_clauses = _root(search, clauses, None)
    # Certificates rest on the default rule for bounds, which their checker can follow by itself.
    if open_clauses and not search.keep_leaves and not search.is_over():
        with torch.no_grad():
            state = sharpen(search.graph, root.region, root.anchor.state, SHARPEN_STEPS)
        root, open_clauses = _root(search, torch.tensor(open_clauses), state)
    if search.keep_leaves:
        search.bounds.update(_read_bounds(search.graph, root.anchor.state))
    domains = [Domain(c, (), {}, root.anchor) for c in open_clauses]
    found = _solve_all(search, root, domains, ROOT_STEPS)
    if not search.keep_leaves and isinstance(found, list):
        found = _narrow(search, root, found)
    return found if isinstance(found, Counterexample) else _branch(search, root, found)


def _branch(search: Search, root: Root, domains: list[Domain]) -> Counterexample | bool | None:
    """Cuts the domains until none is left."""
    pool = sorted(domains, key=lambda d: d.value)
    half, stuck = _batch_size(search.graph) // 2, False
    while pool:
        if search.is_over():
            return False
        search.lower = min(d.value for d in pool)
        # Counterexamples hide where the bound is worst; a long list is worked off from its end.
        front = len(pool) <= POOL
        take, pool = (pool[:half], pool[half:]) if front else (pool[-half:], pool[:-half])
        found = _renew(search, root, take)
        if isinstance(found, list):
            children, lost = _cut(search, root, found) if found else ([], False)
            stuck = stuck or lost
            found = _solve_all(search, root, children, DOMAIN_STEPS)
        if isinstance(found, Counterexample):
            return found
        pool = list(heapq.merge(pool, sorted(found, key=_value), key=_value))
    return None if stuck else not search.is_over()


def _value(domain: Domain) -> float:
    return domain.value


def _solve_all(
    search: Search, root: Root, domains: list[Domain], steps: int
) -> Counterexample | list[Domain]:
    """`_solve` in batches; those not reached in time stay open."""
    size, left = _batch_size(search.graph), []
    for i in range(0, len(domains), size):
        if search.is_over():
            return left + domains[i:]
        found = _solve(search, root, domains[i : i + size], steps)
        if isinstance(found, Counterexample):
            return found
        left += found
    return left


def _narrow(search: Search, root: Root, domains: list[Domain]) -> Counterexample | list[Domain]:
    """Bounds for every clause of its own, over the inputs where it could be violated."""
    left = []
    for domain in domains:
        mine = [domain]
        for _ in range(NARROWINGS):
            before = mine[0].value
            found = _refresh(search, root, mine)
            found = _solve_all(search, root, found, ROOT_STEPS)
            if isinstance(found, Counterexample):
                return found
            mine = found
            if not mine or search.is_over() or mine[0].value < LEAST_GAIN * before:
                break
        left += mine
    return left


def _renew(search: Search, root: Root, domains: list[Domain]) -> Counterexample | list[Domain]:
    """The domains, with new bounds for those whose bounds are stale."""
    fresh = [d for d in domains if not d.is_stale]
    for domain in domains:
        if domain.is_stale and not search.is_over():
            found = _solve_all(search, root, _refresh(search, root, [domain]), DOMAIN_STEPS)
            if isinstance(found, Counterexample):
                return found
            fresh += found
    return fresh


@torch.no_grad()
def _refresh(search: Search, root: Root, domains: list[Domain]) -> list[Domain]:
    """The domains with new bounds; those of which nothing is left are gone."""
    batch = batch_of(search, root, domains, low=False)
    bound = _pull(search, batch, domains)
    shifted = Shifted(batch.region, batch.D, batch.d)
    region = CutBox(
        batch.region.lower,
        batch.region.upper,
        shifted.full(bound.A)[:, 0],
        (bound.constant + batch.d)[:, 0],
    )
    state, empty = tighten(search.graph, batch.state, region)
    anchors = [
        Anchor(state.rows(slice(i, i + 1)), len(d.splits), _lifetime(search.graph, state))
        for i, d in enumerate(domains)
    ]
    return [
        replace(d, anchor=a)
        for d, a, gone in zip(domains, anchors, empty.tolist(), strict=True)
        if not gone
    ]


def _lifetime(graph: Graph, state: State) -> float:
    """So many splits that new bounds for one domain cost about as much as its descendants do."""
    sources = {i for k in graph.nodes if not k.op.is_affine for i in k.inputs}
    rows = sum(int((state.boxes[i].lower * state.boxes[i].upper < 0).sum()) for i in sources)
    # Two bounds of every loose value in float64, against passes in float32, of which
    # each gradient counts as two more.
    ratio = 4 * rows / (3 * DOMAIN_STEPS + 2 * CANDIDATES)
    return math.ceil(math.log2(1 + ratio))


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
def _root(search: Search, clauses: Tensor, state: State | None) -> tuple[Root, list[int]]:
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
    weights = {
        int(c): torch.eye(d.shape[1], dtype=d.dtype)[b] for c, b in zip(clauses, best, strict=True)
    }
    lifetime = math.inf if search.keep_leaves else _lifetime(graph, state)
    root = Root(region, Anchor(state, 0, lifetime), weights)
    for c, v in zip(clauses.tolist(), value.tolist(), strict=True):
        if v > 0 and search.keep_leaves:
            search.leaves.append(_leaf(search, root, Domain(c, (), {}, root.anchor), v))
    search.domains += 1
    return root, [c for c, v in zip(clauses.tolist(), value.tolist(), strict=True) if v <= 0]


def _leaf(search: Search, root: Root, domain: Domain, value: float) -> Leaf:
    clause = search.prop.clauses[domain.clause]
    weights = np.zeros(len(clause.d))
    chosen = root.weights[domain.clause].nonzero().flatten().tolist()
    for i in chosen:  # rows past the clause's own are copies of its last
        weights[min(i, len(weights) - 1)] += float(root.weights[domain.clause][i])
    slopes = {i: t[0].double().numpy() for i, t in domain.parameters.items()}
    return Leaf(
        domain.clause,
        clause.lower,
        clause.upper,
        weights,
        value,
        domain.splits,
        slopes,
        tuple(domain.multipliers),
    )


def _solve(
    search: Search, root: Root, domains: list[Domain], steps: int
) -> Counterexample | list[Domain]:
    """Bounds domains; returns those still open, best choices inside, or a counterexample."""
    graph, start = search.single, len(search.graph.nodes) - 1
    batch = batch_of(search, root, domains, low=True)
    choices = choices_of(search, domains, batch)
    region = Shifted(batch.region, batch.D, batch.d)
    scale = 1e-5
    choices, value = optimise(
        graph, start, batch.A, batch.state, region, choices, batch.cuts, steps, target=scale
    )
    search.domains += len(domains)
    for i, domain in enumerate(domains):
        domain.parameters = {j: t[:, i, 0].clone() for j, t in choices.parameters.items()}
        domain.multipliers = [
            float(choices.multipliers[node][i, place]) for node, place in batch.places[i]
        ]
        domain.value = float(value[i, 0])
    seems = [d for d in domains if d.value > 0]
    proven = _evaluate(search, root, seems) if seems else []
    kept = [d for d in domains if d.value <= 0] + [
        d for d, v in zip(seems, proven, strict=True) if v <= 0
    ]
    if search.keep_leaves:
        search.leaves += [
            _leaf(search, root, d, v) for d, v in zip(seems, proven, strict=True) if v > 0
        ]
    return _look(search, batch, choices, domains) or kept


@torch.no_grad()
def _evaluate(search: Search, root: Root, domains: list[Domain]) -> list[float]:
    """Bounds in float64 with rounding errors, at the choices that the search ended with."""
    batch = batch_of(search, root, domains, low=False)
    bound = _pull(search, batch, domains)
    value = Shifted(batch.region, batch.D, batch.d).minimum(bound.A) + bound.constant
    return value.flatten().tolist()


def _pull(search: Search, batch: Batch, domains: list[Domain]) -> LinearBound:
    """The linear bounds in float64 at the domains' choices."""
    parameters = {
        i: torch.stack([d.parameters[i] for d in domains], 1).unsqueeze(2).double()
        for i in domains[0].parameters
    }
    multipliers = {node: torch.zeros_like(cut.point) for node, cut in batch.cuts.items()}
    for i, domain in enumerate(domains):
        for value, (node, place) in zip(domain.multipliers, batch.places[i], strict=True):
            multipliers[node][i, place] = value
    return pull_back(
        search.graph,
        len(search.graph.nodes) - 1,
        batch.A,
        batch.state,
        parameters=parameters,
        cuts=batch.cuts,
        multipliers=multipliers,
    )


def _look(
    search: Search, batch: Batch, choices: Choices, domains: list[Domain]
) -> Counterexample | None:
    """Descends from the corners that minimise the domains' bounds."""
    if not search.look:
        return None
    with torch.no_grad():
        bound = pull_back(
            search.single,
            len(search.graph.nodes) - 1,
            batch.A,
            batch.state,
            parameters=choices.parameters,
            cuts=batch.cuts,
            multipliers=choices.multipliers,
            rounding=False,
        )
        x = Shifted(batch.region, batch.D, batch.d).argmin(bound.A)[:, 0].flatten(1)
    worst = sorted(range(len(domains)), key=lambda i: domains[i].value)[:8]
    clause = torch.tensor([domains[i].clause for i in worst])
    low, high = search.rows32.lower[clause], search.rows32.upper[clause]
    x, _ = descend(search.single, search.rows32, clause, x[worst], low, high, 5)
    return search.check(clause, x)


@torch.no_grad()
def _cut(search: Search, root: Root, domains: list[Domain]) -> tuple[list[Domain], bool]:
    """Both halves of every domain at its best candidate; the flag tells of domains without any."""
    batch = batch_of(search, root, domains, low=True)
    options = candidates(search, domains, batch)
    stuck = any(not o for o in options)
    trials, owners = [], []
    for i, (domain, splits) in enumerate(zip(domains, options, strict=True)):
        for split in splits:
            for above in (True, False):
                half = replace(split, above=above)
                trials.append(
                    Domain(
                        domain.clause,
                        (*domain.splits, half),
                        domain.parameters,
                        domain.anchor,
                        [*domain.multipliers, 0.0],
                    )
                )
            owners.append(i)
    if not trials:
        return [], stuck
    values = torch.cat(
        [
            _trial(search, root, trials[i : i + 4 * len(domains)])
            for i in range(0, len(trials), 4 * len(domains))
        ]
    ).reshape(-1, 2)
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


def _trial(search: Search, root: Root, trials: list[Domain]) -> Tensor:
    """Bounds ``(n,)`` at the parents' choices."""
    batch = batch_of(search, root, trials, low=True)
    choices = choices_of(search, trials, batch)
    bound = pull_back(
        search.single,
        len(search.graph.nodes) - 1,
        batch.A,
        batch.state,
        parameters=choices.parameters,
        cuts=batch.cuts,
        multipliers=choices.multipliers,
        rounding=False,
    )
    return (Shifted(batch.region, batch.D, batch.d).minimum(bound.A) + bound.constant).flatten()
