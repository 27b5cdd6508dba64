"""One search over activations, and what closes its domains: float64 bounds, planes, leaves.

Whatever a domain's search in float32 found, it is closed only by a bound that is evaluated in
float64 with its rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from holdfast.verifiers.crown import LinearBound, pull_back
from holdfast.verifiers.domains import Batch, Bounder, Domain, Root, Shifted, batch_of
from holdfast.verifiers.graph_bounds import spread
from holdfast.verifiers.hull import Reading, read_rectifiers, rows_of, tightened
from holdfast.verifiers.problem import Leaf
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

# The planes of `hull` are tried again where a bound is so much nearer to zero than where they
# failed, and where it is so much farther than where they sufficed.
NEARER, FARTHER = 0.8, 1.25


@final
@dataclass(slots=True)
class Tree:
    """One search.

    Attributes:
        search: The property.
        root: Its box.
        bounder: Who bounds the domains.
        patience: Splits by which new bounds are put off, as earlier ones gained little.
        spent: Multiplications so far, about.
        readings: Undecided rectifiers that read the input itself; None until they are needed.
        reach: Bounds that lie lower below zero than this are not lifted above it by their planes.
    """

    search: Search
    root: Root
    bounder: Bounder
    patience: int = 0
    spent: float = 0.0
    readings: Sequence[Reading] | None = None
    reach: float = math.inf


def prove(tree: Tree, domains: list[Domain]) -> list[Domain]:
    """Those whose bounds are positive in float64, with rounding errors."""
    with torch.no_grad():
        batch, bound = exact(tree, domains)
        shifted = Shifted(batch.region, batch.D, batch.d)
        values = (shifted.minimum(bound.A) + bound.constant).flatten().tolist()
    proven = [(d, v) for d, v in zip(domains, values, strict=True) if v > 0]
    if tree.search.keep_leaves:
        for domain, value in proven:
            slopes = {i: t[:, 0, 0].numpy() for i, t in tree.bounder.parameters([domain]).items()}
            multipliers = tree.bounder.multipliers(domain)
            made = leaf(tree.search, tree.root, domain, value, slopes, multipliers)
            tree.search.leaves.append(made)
    return [d for d, _ in proven]


@torch.no_grad()
def close(tree: Tree, domains: list[Domain]) -> list[Domain]:
    """Those that planes over the input prove, in float64 and with rounding errors."""
    hopeful = [d for d in domains if d.value + tree.reach > 0]
    readings = _readings(tree) if hopeful else ()
    if not readings:
        return []
    search, closed = tree.search, []
    batch, bound = exact(tree, hopeful, frozenset(r.node for r in readings))
    shifted = Shifted(batch.region, batch.D, batch.d)
    parameters = tree.bounder.parameters(hopeful)
    rows = rows_of(search.graph, batch.state, bound, shifted, readings, parameters)
    for domain, row in zip(hopeful, rows, strict=True):
        if search.is_over() or domain.value + tree.reach <= 0:
            continue
        if tightened(row, readings) > 0:
            closed.append(domain)
            tree.reach = max(tree.reach, -FARTHER * domain.value)
        else:
            tree.reach = min(tree.reach, -NEARER * domain.value)
    return closed


def _readings(tree: Tree) -> Sequence[Reading]:
    """Found once; certificates and balls know no planes but chords."""
    if tree.readings is None:
        has_planes = not tree.search.keep_leaves and isinstance(tree.root.region, BoxRegion)
        state = tree.root.anchor.state
        tree.readings = read_rectifiers(tree.search.graph, state) if has_planes else ()
    return tree.readings


def exact(
    tree: Tree, domains: list[Domain], watch: frozenset[int] = frozenset()
) -> tuple[Batch, LinearBound]:
    """The linear bounds in float64, with rounding errors, at the choices of the search."""
    batch = batch_of(tree.search, tree.root, domains, low=False)
    bound = pull_back(
        tree.search.graph,
        len(tree.search.graph.nodes) - 1,
        batch.A,
        batch.state,
        parameters=tree.bounder.parameters(domains),
        cuts=batch.cuts,
        multipliers=spread(batch, [tree.bounder.multipliers(d) for d in domains]),
        watch=watch,
    )
    return batch, bound


def leaf(
    search: Search,
    root: Root,
    domain: Domain,
    value: float,
    slopes: Mapping[int, np.ndarray] | None = None,
    multipliers: Sequence[float] = (),
) -> Leaf:
    """What a certificate says of a closed domain."""
    clause = search.prop.clauses[domain.clause]
    weights = np.zeros(len(clause.d))
    chosen = root.weights[domain.clause].nonzero().flatten().tolist()
    for i in chosen:  # rows past the clause's own are copies of its last
        weights[min(i, len(weights) - 1)] += float(root.weights[domain.clause][i])
    return Leaf(
        domain.clause,
        clause.lower,
        clause.upper,
        weights,
        value,
        domain.splits,
        slopes or {},
        tuple(multipliers),
    )
