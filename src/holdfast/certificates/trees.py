"""Build the trees of proof files, and complete them where a case is not excluded yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.check import BATCH, Advice, Case, Cut, Derivation
from holdfast.certificates.errors import CertificateError
from holdfast.certificates.proof import INPUT, LEAF, Tree

Array = NDArray[np.float64]

MAX_CUT_INPUTS = 64
"""Boxes of more inputs are not cut: the number of parts would explode."""
MARGIN = 1e-11
"""Least bound of a leaf, so that sums in another order cannot turn its sign."""
MAX_TRIED = 32
"""Neurons tried for a cut."""


@dataclass(slots=True, eq=False)
class Branch:
    """A node while a tree is built: a leaf until it is cut.

    Attributes:
        cuts: the cuts on the way to it.
        weights: combination of rows, ``(r,)``, of a leaf.
        multipliers: one for each cut of a neuron.
        slopes: lower slopes by number of the ReLU, ``(n,)`` each.
        cut: layer, index and point of an inner node.
        parts: the parts below and above it.
    """

    cuts: tuple[Cut, ...]
    weights: Array
    multipliers: tuple[float, ...] = ()
    slopes: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    cut: tuple[int, int, float] | None = None
    parts: tuple[Branch, Branch] | None = None

    def divide(self, layer: int, index: int, point: float) -> tuple[Branch, Branch]:
        """Cut a leaf in two, which inherit what it carries; a new cut has multiplier zero."""
        more = self.multipliers if layer == INPUT else (*self.multipliers, 0.0)
        below, above = (
            Branch((*self.cuts, (layer, index, point, side)), self.weights, more, self.slopes)
            for side in (False, True)
        )
        self.cut, self.parts = (layer, index, point), (below, above)
        return self.parts

    def nodes(self) -> Iterator[Branch]:
        """All nodes in preorder."""
        pending: list[Branch] = [self]
        while pending:
            node = pending.pop()
            yield node
            if node.parts:
                pending.extend(reversed(node.parts))


def flatten(
    root: Branch, range_slopes: Mapping[tuple[int, int], NDArray[Any]] | None = None
) -> Tree:
    """The tree as arrays."""
    nodes = list(root.nodes())
    cuts = [node.cut or (LEAF, 0, 0.0) for node in nodes]
    leaves = [node for node in nodes if node.cut is None]
    layers = sorted(set().union(*(leaf.slopes for leaf in leaves)))
    return Tree(
        np.array([cut[0] for cut in cuts], dtype=np.int32),
        np.array([cut[1] for cut in cuts], dtype=np.int64),
        np.array([cut[2] for cut in cuts], dtype=np.float64),
        np.stack([leaf.weights for leaf in leaves]).astype(np.float64),
        np.array([m for leaf in leaves for m in leaf.multipliers], dtype=np.float64),
        {k: np.stack([leaf.slopes[k] for leaf in leaves]) for k in layers},
        dict(range_slopes or {}),
    )


def complete(root: Branch, derivation: Derivation, max_leaves: int = 1_000_000) -> int:
    """Cut leaves that the checker's own bound does not exclude; returns how many cuts it took.

    A verifier inherits bounds from parents and rounds in another order, so a few of its leaves may
    miss zero by a hair when they are derived from nothing. They are cut in the widest input (where
    only inputs are cut) or in the unstable neuron of the widest range.

    Raises:
        CertificateError: more than ``max_leaves`` leaves would be needed.
    """
    pending = [node for node in root.nodes() if node.cut is None]
    n_leaves, n_cuts = len(pending), 0
    while pending:
        batch, pending = pending[:BATCH], pending[BATCH:]
        for leaf, value in zip(batch, values(batch, derivation).tolist(), strict=True):
            if value > MARGIN:
                continue
            n_leaves, n_cuts = n_leaves + 1, n_cuts + 1
            if n_leaves > max_leaves:
                raise CertificateError(f"the proof would need more than {max_leaves} cases")
            pending += leaf.divide(*next_cut(leaf, derivation))
    return n_cuts


def values(leaves: Sequence[Branch], derivation: Derivation) -> Array:
    """The checker's bounds of leaves; a leaf takes a single row instead where that is better."""
    cases = [Case(number, leaf.cuts) for number, leaf in enumerate(leaves)]
    multipliers = np.array([m for leaf in leaves for m in leaf.multipliers])
    layers = set.intersection(*(set(leaf.slopes) for leaf in leaves))
    slopes = {k: np.stack([leaf.slopes[k] for leaf in leaves]) for k in layers}
    weights = np.stack([leaf.weights for leaf in leaves])
    best = derivation.bounds(cases, Advice(weights, multipliers, slopes))
    if not (best > MARGIN).all() and weights.shape[1] > 1:
        for row in np.eye(weights.shape[1]):
            alone = np.broadcast_to(row, weights.shape)
            found = derivation.bounds(cases, Advice(alone, multipliers, slopes))
            for number in np.flatnonzero((best <= MARGIN) & (found > best)).tolist():
                best[number], leaves[number].weights = found[number], row
    return best


def next_cut(leaf: Branch, derivation: Derivation) -> tuple[int, int, float]:
    """Where to cut a leaf that is not excluded."""
    goal = derivation.goal
    if not any(cut[0] != INPUT for cut in leaf.cuts) and len(goal.lower) <= MAX_CUT_INPUTS:
        lower, upper = goal.lower.copy(), goal.upper.copy()
        for _, index, point, above in leaf.cuts:
            if above:
                lower[index] = max(lower[index], point)
            else:
                upper[index] = min(upper[index], point)
        index = int(np.argmax(upper - lower))
        return INPUT, index, float(0.5 * (lower[index] + upper[index]))
    return neuron_cut(leaf, derivation)


def neuron_cut(leaf: Branch, derivation: Derivation) -> tuple[int, int, float]:
    """Of the neurons of widest unstable range, the one whose worse part has the best bound."""
    goal = derivation.goal
    ranges = derivation.ranges(goal.lower[None], goal.upper[None], shared=True)
    taken = {(layer, index) for layer, index, _, _ in leaf.cuts}
    reach: list[tuple[float, int, int]] = []
    for layer, at in enumerate(derivation.relus):
        (source,) = derivation.steps[at].sources
        width = np.minimum(-ranges.lower[source][0], ranges.upper[source][0])
        reach += [(float(width[i]), layer, i) for i in np.flatnonzero(width > 0).tolist()
                  if (layer, i) not in taken]  # fmt: skip
    if not reach:
        raise CertificateError("a case is not excluded although all its neurons are cut")
    candidates = sorted(reach, reverse=True)[:MAX_TRIED]
    trial = Branch(leaf.cuts, leaf.weights, leaf.multipliers, leaf.slopes)
    parts = [part for _, layer, i in candidates for part in trial.divide(layer, i, 0.0)]
    found = values(parts, derivation).reshape(-1, 2).min(axis=1)
    _, layer, index = candidates[int(np.argmax(found))]
    return layer, index, 0.0
