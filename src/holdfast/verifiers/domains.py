"""Domains of branch and bound over activations: their records, tensors and candidate cuts."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.graphs.window import Window
from holdfast.verifiers.crown import Cuts, State
from holdfast.verifiers.problem import Split
from holdfast.verifiers.regions import BallRegion, BoxRegion
from holdfast.verifiers.search import Search

CANDIDATES = 4
"""Neurons tried at each domain."""


class Bounder(Protocol):
    """Bounds domains in float32 and says where to split them."""

    size: int
    """Domains that are best handled together."""

    def cost(self, steps: int) -> float:
        """Multiplications for one domain, about."""
        ...

    def solve(self, domains: Sequence[Domain], steps: int) -> None:
        """Optimise choices and set them with the values."""
        ...

    def trial(self, domains: Sequence[Domain], options: list[list[Split]]) -> Tensor:
        """Values ``(all options, 2)`` of both halves at the domains' choices, above first."""
        ...

    def candidates(self, domains: Sequence[Domain]) -> list[list[Split]]:
        """The most promising splits of each domain."""
        ...

    def half(self, domain: Domain, split: Split) -> Domain:
        """The part of a domain on one side, with its choices to begin from."""
        ...

    def corners(self, domains: Sequence[Domain]) -> Tensor:
        """Inputs ``(n, p)`` that attain the domains' bounds."""
        ...

    def parameters(self, domains: Sequence[Domain]) -> dict[int, Tensor]:
        """Choices by node in float64, ``(q, n, 1, *shape)``."""
        ...

    def multipliers(self, domain: Domain) -> list[float]:
        """One for each split."""
        ...


@final
@dataclass(slots=True)
class Domain:
    """A clause under cuts, with the choices it starts from.

    Attributes:
        clause: Position in the property.
        splits: Cuts so far.
        anchor: Bounds that hold on it.
        choices: Slopes and multipliers in the form of whoever bounds it; None for the defaults.
        value: Lower bound, in float32.
        age: Splits since the anchor was made; those that gained nothing count more.
        first: Lower bound of the domain that the anchor was made for.
    """

    clause: int
    splits: tuple[Split, ...]
    anchor: Anchor
    choices: Any = None
    value: float = -np.inf
    age: int = 0
    first: float = -np.inf

    def is_stale(self, patience: int) -> bool:
        """Whether new bounds are due; with patience, so many splits later.

        They are when its own are old, and splits would take as long again to close it at the pace
        of those since they were made.
        """
        due = self.age >= self.anchor.lifetime + patience
        return due and -self.value * self.age >= self.anchor.lifetime * (self.value - self.first)


@final
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Anchor:
    """Bounds shared by a domain and those split from it.

    Attributes:
        state: Boxes of one sample in float64.
        lifetime: Age of domains from which on they should be made again.
    """

    state: State
    lifetime: float


@final
@dataclass(frozen=True, slots=True)
class Root:
    """What all domains of one input box share."""

    region: BoxRegion | BallRegion
    anchor: Anchor
    weights: dict[int, Tensor]


@final
@dataclass(frozen=True, slots=True)
class Shifted:
    """A region whose minimum includes a property's own input coefficients and constants."""

    region: BoxRegion | BallRegion
    D: Tensor | None
    d: Tensor

    @property
    def is_box(self) -> bool:
        """Whether the inputs are."""
        return self.region.is_box

    def hull(self) -> Box:
        """The box of inputs."""
        return self.region.hull()

    def minimum(self, A: Tensor) -> Tensor:
        """The least value of ``A x + D x + d``."""
        return self.region.minimum(self.full(A)) + self.d

    def argmin(self, A: Tensor) -> Tensor:
        """Where it is attained."""
        return self.region.argmin(self.full(A))

    def full(self, A: Tensor) -> Tensor:
        """Coefficients with the property's own."""
        return A if self.D is None else A + self.D.reshape(A.shape)

    def rows(self, index: Tensor | slice) -> Shifted:
        """The domains at ``index``."""
        return Shifted(
            self.region.rows(index), None if self.D is None else self.D[index], self.d[index]
        )

    def windows(self, window: Window) -> Shifted:
        """Not needed: properties start at the output."""
        raise NotImplementedError("properties are bounded at flat outputs")

    def to(self, dtype: torch.dtype) -> Shifted:
        """In another precision."""
        return Shifted(
            self.region.to(dtype), None if self.D is None else self.D.to(dtype), self.d.to(dtype)
        )


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Domains as tensors: coefficients ``(n, 1, *output)``, constants, boxes, cuts, choices."""

    A: Tensor
    D: Tensor | None
    d: Tensor
    state: State
    region: BoxRegion | BallRegion
    cuts: dict[int, Cuts]
    places: list[list[tuple[int, int]]]


def batch_of(search: Search, root: Root, domains: Sequence[Domain], low: bool) -> Batch:
    """Tensors of domains in float32 (``low``) or float64."""
    dtype = torch.float32 if low else torch.float64
    rows, n = search.rows, len(domains)
    weights = torch.stack([root.weights[d.clause] for d in domains])
    clause = torch.tensor([d.clause for d in domains])
    A = (weights.unsqueeze(1) @ rows.C[clause]).to(dtype)
    D = None if rows.D is None else (weights.unsqueeze(1) @ rows.D[clause]).to(dtype)
    d = (weights * rows.d[clause]).sum(1, keepdim=True).to(dtype)
    state, region = _states(search, root, domains, dtype), root.region.to(dtype)
    boxes = state.boxes
    cuts, places = _cuts(domains, dtype)
    for node, cut in cuts.items():
        boxes[node] = clip(boxes[node], cut)
    wide = region.rows(torch.zeros(n, dtype=torch.long))
    A = A.reshape(n, 1, *search.graph.output_shape)
    return Batch(A, D, d, state, wide, cuts, places)


def _states(search: Search, root: Root, domains: Sequence[Domain], dtype: torch.dtype) -> State:
    """The domains' bounds; those of the root where no relaxation reads them."""
    anchors, nodes, n = [d.anchor for d in domains], search.graph.nodes, len(domains)
    read = {i for k in nodes if not k.op.is_affine for i in k.inputs}
    first = root.anchor.state
    shared = all(a is anchors[0] for a in anchors)
    boxes = []
    for i, box in enumerate(first.boxes):
        if shared or i not in read:
            source = anchors[0].state.boxes[i] if i in read else box
            pair = (t.to(dtype).expand(n, *t.shape[1:]) for t in source)
        else:
            pair = (
                torch.cat([a.state.boxes[i][side] for a in anchors]).to(dtype) for side in (0, 1)
            )
        boxes.append(Box(*pair))
    if dtype != torch.float64:
        return State(boxes, [])
    return State(boxes, [None if m is None else m.expand(n, 1) for m in first.magnitudes])


def _cuts(
    domains: Sequence[Domain], dtype: torch.dtype
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
        cuts[node] = Cuts(
            torch.from_numpy(index),
            torch.from_numpy(sign).to(dtype),
            torch.from_numpy(point).to(dtype),
        )
    return cuts, places


def clip(box: Box, cut: Cuts) -> Box:
    """The box within the cuts; where nothing is left of it any bound holds."""
    shape = box.lower.shape
    lower, upper = flattened(box.lower), flattened(box.upper)
    high, low = torch.full_like(cut.point, torch.inf), torch.full_like(cut.point, -torch.inf)
    lower = lower.scatter_reduce(1, cut.neuron, torch.where(cut.sign > 0, cut.point, low), "amax")
    upper = upper.scatter_reduce(1, cut.neuron, torch.where(cut.sign < 0, cut.point, high), "amin")
    return Box(
        torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
    )


def read_bounds(graph: Graph, state: State) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Flat bounds of every node that a non-linear node reads."""
    nodes = sorted({i for n in graph.nodes if not n.op.is_affine for i in n.inputs})
    return {
        i: (state.boxes[i].lower[0].flatten().numpy(), state.boxes[i].upper[0].flatten().numpy())
        for i in nodes
    }
