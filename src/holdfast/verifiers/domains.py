"""Domains of branch and bound over activations: their records, tensors and candidate cuts."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.operator import Activation, Box
from holdfast.graphs.window import Window
from holdfast.verifiers.alpha_crown import Choices, default_choices
from holdfast.verifiers.crown import Cuts, State, pull_back
from holdfast.verifiers.problem import Split
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

CANDIDATES = 6


@final
@dataclass(slots=True)
class Domain:
    """A clause under cuts, with the choices it starts from.

    Attributes:
        clause: Position in the property.
        splits: Cuts so far.
        parameters: Choices by activation, ``(q, *shape)`` in float32.
        anchor: Bounds that hold on it.
        multipliers: One per cut.
        value: Lower bound, in float32.
    """

    clause: int
    splits: tuple[Split, ...]
    parameters: dict[int, Tensor]
    anchor: Anchor
    multipliers: list[float] = field(default_factory=list)
    value: float = -np.inf

    @property
    def is_stale(self) -> bool:
        """Whether its bounds were made so many splits ago that new ones are due."""
        return len(self.splits) - self.anchor.depth >= self.anchor.lifetime


@final
@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """Bounds shared by a domain and those split from it.

    Attributes:
        state: Boxes of one sample in float64.
        depth: Number of splits when they were made.
        lifetime: Number of further splits after which they should be made again.
    """

    state: State
    depth: int
    lifetime: float


@final
@dataclass(frozen=True, slots=True)
class Root:
    """What all domains of one input box share."""

    region: BoxRegion
    anchor: Anchor
    weights: dict[int, Tensor]


@final
@dataclass(frozen=True, slots=True)
class Shifted:
    """A region whose minimum includes a property's own input coefficients and constants."""

    region: BoxRegion
    D: Tensor | None
    d: Tensor

    @property
    def is_box(self) -> bool:
        """Always."""
        return True

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
    region: BoxRegion
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
        boxes[node] = _clip(boxes[node], cut)
    shape = (n, *search.graph.input_shape)
    wide = BoxRegion(region.lower.expand(shape), region.upper.expand(shape))
    return Batch(
        A.reshape(n, 1, *search.graph.output_shape),
        D,
        d,
        state,
        wide,
        cuts,
        places,
    )


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


def _clip(box: Box, cut: Cuts) -> Box:
    """The box within the cuts; where nothing is left of it any bound holds."""
    shape = box.lower.shape
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    high, low = torch.full_like(cut.point, torch.inf), torch.full_like(cut.point, -torch.inf)
    lower = lower.scatter_reduce(1, cut.neuron, torch.where(cut.sign > 0, cut.point, low), "amax")
    upper = upper.scatter_reduce(1, cut.neuron, torch.where(cut.sign < 0, cut.point, high), "amin")
    return Box(
        torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
    )


def choices_of(search: Search, domains: Sequence[Domain], batch: Batch) -> Choices:
    """The domains' own choices where they have some, else the defaults."""
    start = len(search.graph.nodes) - 1
    choices = default_choices(search.single, batch.state, start)
    parameters = {
        i: torch.stack(
            [d.parameters[i] if i in d.parameters else t[:, j, 0] for j, d in enumerate(domains)], 1
        ).unsqueeze(2)
        for i, t in choices.parameters.items()
    }
    multipliers = {node: torch.zeros_like(cut.point) for node, cut in batch.cuts.items()}
    for i, domain in enumerate(domains):
        for value, (node, place) in zip(domain.multipliers, batch.places[i], strict=False):
            multipliers[node][i, place] = value
    return Choices(parameters, multipliers)


def candidates(search: Search, domains: list[Domain], batch: Batch) -> list[list[Split]]:
    """Cuts with the largest loss of relaxation, weighted by the coefficient after it."""
    graph, n = search.single, len(domains)
    nodes = [k for k in graph.nodes if isinstance(k.op, Activation) and k.op.can_split]
    choices = choices_of(search, domains, batch)
    bound = pull_back(
        graph,
        len(graph.nodes) - 1,
        batch.A,
        batch.state,
        parameters=choices.parameters,
        cuts=batch.cuts,
        multipliers=choices.multipliers,
        watch=frozenset(k.index for k in nodes),
        rounding=False,
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
    sources = np.concatenate(
        [np.stack([np.full(k.size, k.inputs[0]), np.arange(k.size)], 1) for k in nodes]
    )
    top = score.topk(min(CANDIDATES, score.shape[1]), 1)
    return [
        [
            Split(int(sources[j, 0]), int(sources[j, 1]), float(point[i, j]), True)
            for j, v in zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True)
            if v >= 0
        ]
        for i in range(n)
    ]


def _loss(op: Activation, box: Box, point: Tensor, A: Tensor) -> Tensor:
    """``|A|`` times the distance of the line in use from the function at the cut."""
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
