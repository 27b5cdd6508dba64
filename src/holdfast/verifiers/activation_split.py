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

import torch
from torch import Tensor

from holdfast.verifiers.alpha_crown import sharpen
from holdfast.verifiers.attack import descend
from holdfast.verifiers.crown import State, pull_back
from holdfast.verifiers.dense_bounds import DenseBounds, dense_bounds
from holdfast.verifiers.domains import (
    Anchor,
    Domain,
    Root,
    read_bounds,
)
from holdfast.verifiers.effort import MORE, favour, gain, lifetime, share_bounds
from holdfast.verifiers.graph_bounds import GraphBounds
from holdfast.verifiers.problem import Counterexample, Split
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.refinement import refine
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search
from holdfast.verifiers.tightening import cost, left, tighten
from holdfast.verifiers.tree import Tree, close, exact, leaf, prove

ROOT_STEPS = 60
SHARPEN_STEPS = 12
DOMAIN_STEPS = 12
# Rounds of new bounds at the root, each as long as the bound of the clause rises by a tenth.
NARROWINGS = 4
LEAST_GAIN = 0.9
# Multiplications spent on the bounds of single neurons at first, and how many times as many the
# tree gets before. It is less than once, as a tree does more beside its multiplications.
FIRST_EFFORT = 2.5e9
BRANCHING = 0.4
# Open domains from which on the nearest to a proof go first, so that they get fewer.
POOL = 4096
# Where no split raises the bound by this share, only new bounds can help: they are made earlier.
BLIND = 0.01
# New bounds that raise a domain's by less than this share are made more rarely.
LITTLE = 0.02
# Domains that get new bounds together, and those of a batch from which counterexamples are sought.
RENEWED = 4
LOOKS = 8


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
        search.bounds.update(read_bounds(search.graph, root.anchor.state))
    return _cultivate(search, root, open_clauses)


def _cultivate(search: Search, root: Root, clauses: list[int]) -> Counterexample | bool | None:
    """Branches, and begins again each time that the bounds of neurons have become much better."""
    effort, share, gained = FIRST_EFFORT, BRANCHING, 0.0
    tree, pool, planted = None, list[Domain](), dict[int, float]()
    while clauses:
        new = _tree(search, root, clauses)
        if tree is not None:
            new.readings, new.reach = tree.readings, tree.reach
        found = _plant(new, clauses)
        if isinstance(found, Counterexample):
            return found
        values = {d.clause: d.value for d in found}
        better = any(v >= LEAST_GAIN * planted.get(c, -math.inf) for c, v in values.items())
        share *= favour(gained, gain(planted, values))
        if tree is None or better:
            tree, pool, planted = new, found, values
        else:
            pool = [d for d in pool if d.clause in values]
            share_bounds(search.graph, pool, root.anchor.state)
        refines = isinstance(tree.bounder, DenseBounds) and not search.keep_leaves
        outcome = _branch(tree, pool, share * effort if refines else math.inf)
        if not isinstance(outcome, list):
            return outcome
        gained = gain(planted, {d.clause: d.value for d in reversed(outcome)})
        root, clauses = _refined(replace(tree, root=root), outcome, effort)
        pool, effort = outcome, effort * MORE
    return True


def _tree(search: Search, root: Root, clauses: list[int]) -> Tree:
    return Tree(search, root, dense_bounds(search, root, clauses) or GraphBounds(search, root))


def _plant(tree: Tree, clauses: list[int]) -> Counterexample | list[Domain]:
    """The clauses that stay open as a whole."""
    found = _solve(tree, [Domain(c, (), tree.root.anchor) for c in clauses], ROOT_STEPS)
    if not tree.search.keep_leaves and isinstance(found, list):
        found = _narrow(tree, found)
    return found


def _refined(tree: Tree, pool: list[Domain], effort: float) -> tuple[Root, list[int]]:
    """A root with bounds of every neuron by branch and bound, and the clauses still open."""
    search, root = tree.search, tree.root
    assert isinstance(root.region, BoxRegion)
    state, _ = refine(search.graph, root.region, root.anchor.state, effort, search.is_over)
    clauses = sorted({d.clause for d in pool})
    return _root(search, torch.tensor(clauses), state)


def _branch(
    tree: Tree, domains: list[Domain], effort: float
) -> Counterexample | bool | list[Domain] | None:
    """Cuts the domains until none is left; a list are those open after so much effort."""
    search, pool = tree.search, sorted(domains, key=_value)
    half, stuck, end = max(1, tree.bounder.size // 2), False, tree.spent + effort
    while pool:
        if search.is_over():
            return False
        if tree.spent > end:
            return pool
        search.lower = pool[0].value
        # Counterexamples hide where the bound is worst; a long list is worked off from its end.
        front = len(pool) <= POOL
        take, pool = (pool[:half], pool[half:]) if front else (pool[-half:], pool[:-half])
        found = _renew(tree, take)
        if isinstance(found, list):
            children, lost = _cut(tree, found)
            stuck = stuck or lost
            found = _solve(tree, children, DOMAIN_STEPS)
        if isinstance(found, Counterexample):
            return found
        pool = list(heapq.merge(pool, sorted(found, key=_value), key=_value))
    return None if stuck else True


def _value(domain: Domain) -> float:
    return domain.value


def _narrow(tree: Tree, domains: list[Domain]) -> Counterexample | list[Domain]:
    """Bounds for every clause of its own, over the inputs where it could be violated."""
    left = []
    for one in domains:
        mine = [one]
        for _ in range(NARROWINGS):
            if tree.search.is_over():
                break
            before = mine[0].value
            found = _refresh(tree, mine)
            found = _solve(tree, found, ROOT_STEPS)
            if isinstance(found, Counterexample):
                return found
            mine = found
            for domain in mine:
                _settle(domain, before)
            if not mine or mine[0].value < LEAST_GAIN * before:
                break
        left += mine
    return left


def _renew(tree: Tree, domains: list[Domain]) -> Counterexample | list[Domain]:
    """The domains, with new bounds for those whose bounds are stale."""
    fresh, left = [], domains
    while left:
        stale = [d for d in left if d.is_stale(tree.patience)]
        fresh += [d for d in left if not d.is_stale(tree.patience)]
        part, left = stale[:RENEWED], stale[RENEWED:]
        if not part or tree.search.is_over():
            return fresh + stale
        before = {(d.clause, d.splits): d.value for d in part}
        found = _solve(tree, _refresh(tree, part), DOMAIN_STEPS)
        if isinstance(found, Counterexample):
            return found
        idle = sum(_settle(d, before[d.clause, d.splits]) for d in found)
        tree.patience += 3 if 2 * idle > len(part) else 0
        fresh += found
    return fresh


def _settle(domain: Domain, before: float) -> bool:
    """Lets bounds live longer that raised the domain's own from ``before`` by little; whether."""
    idle = domain.value - before < LITTLE * abs(before)
    if idle:
        domain.anchor = replace(domain.anchor, lifetime=domain.anchor.lifetime + 3)
    return idle


@torch.no_grad()
def _refresh(tree: Tree, domains: list[Domain]) -> list[Domain]:
    """The domains with new bounds; those of which nothing is left are gone."""
    search = tree.search
    batch, bound = exact(tree, domains)
    state, empty = tighten(search.graph, batch.state, left(batch, bound))
    tree.spent += cost(search.graph, batch.state)
    return [
        replace(d, anchor=Anchor(one, lifetime(search.graph, one, DOMAIN_STEPS)), age=0)
        for i, d in enumerate(domains)
        if not bool(empty[i])
        for one in (state.rows(slice(i, i + 1)),)
    ]


@torch.no_grad()
def _root(search: Search, clauses: Tensor, state: State | None) -> tuple[Root, list[int]]:
    """Bounds of the whole box, and the clauses they leave open."""
    graph, rows = search.graph, search.rows
    shape = (1, *graph.input_shape)
    first = int(clauses[0])
    box = BoxRegion(rows.lower[first].reshape(shape), rows.upper[first].reshape(shape))
    region = search.ball or box
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
    life = math.inf if search.keep_leaves else lifetime(graph, state, DOMAIN_STEPS)
    root = Root(region, Anchor(state, life), weights)
    for c, v in zip(clauses.tolist(), value.tolist(), strict=True):
        if v > 0 and search.keep_leaves:
            search.leaves.append(leaf(search, root, Domain(c, (), root.anchor), v))
    search.domains += 1
    return root, [c for c, v in zip(clauses.tolist(), value.tolist(), strict=True) if v <= 0]


def _solve(tree: Tree, domains: list[Domain], steps: int) -> Counterexample | list[Domain]:
    """Bounds domains; returns those still open, best choices inside, or a counterexample.

    Domains not reached in time stay open.
    """
    left, size = [], tree.bounder.size
    for i in range(0, len(domains), size):
        if tree.search.is_over():
            return left + domains[i:]
        part = domains[i : i + size]
        tree.bounder.solve(part, steps)
        tree.search.domains += len(part)
        tree.spent += len(part) * tree.bounder.cost(steps)
        found = _look(tree, part)
        if found is not None:
            return found
        seems = [d for d in part if d.value > 0]
        proven = set(map(id, prove(tree, seems))) if seems else set()
        rest = [d for d in part if id(d) not in proven]
        closed = set(map(id, close(tree, rest)))
        left += [d for d in rest if id(d) not in closed]
    return left


def _look(tree: Tree, domains: list[Domain]) -> Counterexample | None:
    """Descends from the corners that minimise the worst bounds."""
    search = tree.search
    if not search.look:
        return None
    worst = sorted(domains, key=_value)[:LOOKS]
    clause = torch.tensor([d.clause for d in worst])
    x = tree.bounder.corners(worst)
    low, high = search.rows32.lower[clause], search.rows32.upper[clause]
    x, _ = descend(search.single, search.rows32, clause, x, low, high, 5)
    return search.check(clause, x)


@torch.no_grad()
def _cut(tree: Tree, domains: list[Domain]) -> tuple[list[Domain], bool]:
    """Both halves of every domain at its best candidate; the flag tells of domains without any."""
    if not domains:
        return [], False
    options = tree.bounder.candidates(domains)
    stuck = any(not o for o in options)
    if not any(options):
        return [], stuck
    # Progress that already proves a half counts no more than the proof.
    values = tree.bounder.trial(domains, options).clamp(max=0.0)
    worse, score = values.amin(1).tolist(), (values.amin(1) + 0.1 * values.amax(1)).tolist()
    children, first = [], 0
    for domain, splits in zip(domains, options, strict=True):
        if splits:
            best = max(range(len(splits)), key=lambda j: score[first + j])
            blind = worse[first + best] - domain.value < BLIND * abs(domain.value)
            children += _halves(tree, domain, splits[0 if blind else best], 4 if blind else 1)
        first += len(splits)
    return children, stuck


def _halves(tree: Tree, domain: Domain, split: Split, years: int = 1) -> list[Domain]:
    """Both sides of a split, so much older."""
    halves = [tree.bounder.half(domain, replace(split, above=above)) for above in (True, False)]
    first = domain.first if domain.age else domain.value
    return [replace(half, age=domain.age + years, first=first) for half in halves]
