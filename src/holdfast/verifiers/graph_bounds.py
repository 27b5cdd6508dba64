"""Domains bounded by passes through the graph itself: any activations, any shapes."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.operator import Activation, Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.alpha_crown import Choices, default_choices, optimise
from holdfast.verifiers.crown import LinearBound, pull_back
from holdfast.verifiers.domains import CANDIDATES, Batch, Domain, Root, Shifted, batch_of
from holdfast.verifiers.problem import Split
from holdfast.verifiers.search import Search

# Elements of all activations of a batch of domains; a few megabytes fit the caches of small
# machines.
BATCH_ELEMENTS = 1 << 17


@final
@dataclass(frozen=True, slots=True)
class Point:
    """Choices of one domain: ``(q, *shape)`` by activation in float32, and one number per split."""

    parameters: dict[int, Tensor] = field(default_factory=dict)
    multipliers: tuple[float, ...] = ()


NOTHING = Point()


@final
class GraphBounds:
    """Bounds of the domains of one input box."""

    def __init__(self, search: Search, root: Root) -> None:
        self.search, self.root = search, root
        elements = sum(n.size for n in search.graph.nodes if not n.op.is_affine)
        self.size = max(4, min(256, BATCH_ELEMENTS // max(1, elements)))

    def cost(self, steps: int) -> float:
        """Not limited."""
        return 0.0

    def solve(self, domains: Sequence[Domain], steps: int) -> None:
        """Adam with recorded gradients."""
        batch = batch_of(self.search, self.root, domains, low=True)
        region = Shifted(batch.region, batch.D, batch.d)
        choices, value = optimise(
            self.search.single,
            len(self.search.graph.nodes) - 1,
            batch.A,
            batch.state,
            region,
            self._choices(domains, batch),
            batch.cuts,
            steps,
            target=1e-5,
        )
        for i, domain in enumerate(domains):
            domain.choices = Point(
                {j: t[:, i, 0].clone() for j, t in choices.parameters.items()},
                tuple(float(choices.multipliers[k][i, place]) for k, place in batch.places[i]),
            )
            domain.value = float(value[i, 0])

    @torch.no_grad()
    def trial(self, domains: Sequence[Domain], options: list[list[Split]]) -> Tensor:
        """One pass for each half."""
        halves = [
            self.half(domain, replace(split, above=above))
            for domain, splits in zip(domains, options, strict=True)
            for split in splits
            for above in (True, False)
        ]
        parts = [halves[i : i + 2 * self.size] for i in range(0, len(halves), 2 * self.size)]
        return torch.cat([self._value(part) for part in parts]).reshape(-1, 2)

    def _value(self, domains: Sequence[Domain]) -> Tensor:
        batch = batch_of(self.search, self.root, domains, low=True)
        bound = self._pull(batch, domains)
        shifted = Shifted(batch.region, batch.D, batch.d)
        return (shifted.minimum(bound.A) + bound.constant).flatten()

    @torch.no_grad()
    def candidates(self, domains: Sequence[Domain]) -> list[list[Split]]:
        """Cuts with the largest loss of relaxation, weighted by the coefficient after it."""
        graph = self.search.single
        nodes = [k for k in graph.nodes if isinstance(k.op, Activation) and k.op.can_split]
        batch = batch_of(self.search, self.root, domains, low=True)
        bound = self._pull(batch, domains, frozenset(k.index for k in nodes))
        scores, points = [], []
        for node in nodes:
            box = batch.state.boxes[node.inputs[0]]
            assert isinstance(node.op, Activation)
            point = node.op.branch_point(box)
            A = bound.watched.get(node.index)
            gap = _loss(node.op, box, point, A) if A is not None else torch.zeros_like(point)
            scores.append(flattened(torch.where(node.op.is_loose(box), gap, -1.0)))
            points.append(flattened(point))
        if not scores:
            return [[] for _ in domains]
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
            for i in range(len(domains))
        ]

    def half(self, domain: Domain, split: Split) -> Domain:
        """The parent's choices and a multiplier of zero."""
        point: Point = domain.choices or NOTHING
        return Domain(
            domain.clause,
            (*domain.splits, split),
            domain.anchor,
            Point(point.parameters, (*point.multipliers, 0.0)),
        )

    @torch.no_grad()
    def corners(self, domains: Sequence[Domain]) -> Tensor:
        """Against the signs of the coefficients."""
        batch = batch_of(self.search, self.root, domains, low=True)
        bound = self._pull(batch, domains)
        return flattened(Shifted(batch.region, batch.D, batch.d).argmin(bound.A)[:, 0])

    def parameters(self, domains: Sequence[Domain]) -> dict[int, Tensor]:
        """As stored."""
        points: list[Point] = [d.choices or NOTHING for d in domains]
        return {
            i: torch.stack([p.parameters[i] for p in points], 1).unsqueeze(2).double()
            for i in points[0].parameters
        }

    def multipliers(self, domain: Domain) -> list[float]:
        """As stored."""
        return list((domain.choices or NOTHING).multipliers)

    def _pull(
        self, batch: Batch, domains: Sequence[Domain], watch: frozenset[int] = frozenset()
    ) -> LinearBound:
        choices = self._choices(domains, batch)
        return pull_back(
            self.search.single,
            len(self.search.graph.nodes) - 1,
            batch.A,
            batch.state,
            parameters=choices.parameters,
            cuts=batch.cuts,
            multipliers=choices.multipliers,
            watch=watch,
            rounding=False,
        )

    def _choices(self, domains: Sequence[Domain], batch: Batch) -> Choices:
        """The domains' own choices where they have some, else the defaults."""
        points: list[Point] = [d.choices or NOTHING for d in domains]
        start = len(self.search.graph.nodes) - 1
        choices = default_choices(self.search.single, batch.state, start)
        parameters = {
            i: torch.stack(
                [p.parameters.get(i, t[:, j, 0]) for j, p in enumerate(points)], 1
            ).unsqueeze(2)
            for i, t in choices.parameters.items()
        }
        return Choices(parameters, spread(batch, [p.multipliers for p in points]))


def spread(batch: Batch, values: Sequence[Sequence[float]]) -> dict[int, Tensor]:
    """Multipliers of splits by node, where the batch has its cuts."""
    multipliers = {node: torch.zeros_like(cut.point) for node, cut in batch.cuts.items()}
    for i, row in enumerate(values):
        for value, (node, place) in zip(row, batch.places[i], strict=False):
            multipliers[node][i, place] = value
    return multipliers


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
