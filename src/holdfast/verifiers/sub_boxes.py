"""Parts of an input box and the linear bounds of a property's rows over them."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self, final

import torch
from torch import Tensor

from holdfast.graphs.operator import Box
from holdfast.verifiers.alpha_crown import default_choices, low_precision, optimise
from holdfast.verifiers.crown import State, pull_back
from holdfast.verifiers.domains import Shifted
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

STEPS, RATE = 3, 0.35
"""Of the search for slopes: few and long steps from the defaults."""


@final
@dataclass(frozen=True, slots=True)
class SubBoxes:
    """Parts of one input box, not bounded yet.

    Attributes:
        lower: Least inputs ``(n, p)``.
        upper: Greatest inputs ``(n, p)``.
        open: Clauses not proven yet ``(n, c)``.
        boxes: Bounds of all nodes on a larger box, or nothing at the root.
        worst: Least bound that their parents had.
    """

    lower: Tensor
    upper: Tensor
    open: Tensor
    boxes: list[Box] = field(default_factory=list)
    worst: float = -float("inf")

    def rows(self, index: Tensor) -> Self:
        """The parts at ``index``."""
        boxes = [Box(b.lower[index], b.upper[index]) for b in self.boxes]
        return replace(
            self,
            lower=self.lower[index],
            upper=self.upper[index],
            open=self.open[index],
            boxes=boxes,
        )

    def __len__(self) -> int:
        return len(self.lower)


@final
@dataclass(frozen=True, slots=True)
class Bounded:
    """Parts after bounding.

    Attributes:
        parts: The parts.
        state: Bounds of all nodes on them.
        value: Least value of every clause's best row ``(n, c)``.
        best: Which row that is ``(n, c)``.
        A: Coefficients of the rows' bounds with default slopes ``(n, c, r, p)``.
        limits: Linear functions that the rows do not fall below: coefficients ``(n, c, k, p)`` and
            constants ``(n, c, k)``.
        slopes: Slopes by node ``(n, c, r, *shape)``, where they were sought or leaves are kept.
    """

    parts: SubBoxes
    state: State
    value: Tensor
    best: Tensor
    A: Tensor
    limits: tuple[Tensor, Tensor]
    slopes: Mapping[int, Tensor]

    def rows(self, index: Tensor) -> Bounded:
        """The parts at ``index``."""
        A, b = self.limits
        return Bounded(
            self.parts.rows(index),
            self.state.rows(index),
            self.value[index],
            self.best[index],
            self.A[index],
            (A[index], b[index]),
            {i: t[index] for i, t in self.slopes.items()},
        )

    def without_proven(self) -> Bounded:
        """Clauses with a positive row are open no more; parts without open clauses drop out."""
        opened = self.parts.open & (self.value <= 0)
        left = replace(self, parts=replace(self.parts, open=opened))
        return left.rows(opened.any(1).nonzero().squeeze(1))


@final
@dataclass(frozen=True, slots=True)
class RowBounder:
    """Bounds the rows of clauses that share an input box.

    Attributes:
        search: The property.
        clauses: Positions of the clauses in it ``(c,)``.
    """

    search: Search
    clauses: Tensor

    def bound(self, parts: SubBoxes) -> Bounded:
        """Bounds of all nodes, and of the rows with the default slopes."""
        graph, region = self.search.graph, self._region(parts)
        state = propagate(graph, region.region, known=parts.boxes or None)
        self.search.domains += len(parts)
        A, b, value = self._linear(region, state)
        value, best = value.max(2)
        slopes = {}
        if self.search.keep_leaves:
            k = A.shape[1] * A.shape[2]
            choices = default_choices(graph, state, len(graph.nodes) - 1, k)
            slopes = _by_row(choices.parameters, A)
        return Bounded(parts, state, value, best, A, (A, b), slopes)

    def improved(self, bounded: Bounded) -> Bounded:
        """With slopes optimised for every row; sought in float32, evaluated with rounding."""
        quick, last = self.search.single, len(self.search.graph.nodes) - 1
        rows, region = self._rows(len(bounded.parts)), self._region(bounded.parts)
        low = low_precision(bounded.state)
        choices = default_choices(quick, low, last, rows.shape[1])
        if not choices.parameters:
            return bounded
        args = (quick, last, rows.float(), low, region.to(torch.float32), choices)
        choices, _ = optimise(*args, steps=STEPS, rate=RATE)
        parameters = {i: t.double() for i, t in choices.parameters.items()}
        A, b, value = self._linear(region, bounded.state, parameters)
        value, best = value.max(2)
        is_better = value > bounded.value
        return Bounded(
            bounded.parts,
            bounded.state,
            torch.where(is_better, value, bounded.value),
            torch.where(is_better, best, bounded.best),
            bounded.A,
            (torch.cat([bounded.limits[0], A], 2), torch.cat([bounded.limits[1], b], 2)),
            _by_row(choices.parameters, A),
        )

    def _region(self, parts: SubBoxes) -> Shifted:
        """The boxes, with what the rows add of their own ``(n, c * r, ...)``."""
        n, shape, own = len(parts), self.search.graph.input_shape, self.search.rows
        box = BoxRegion(parts.lower.reshape(n, *shape), parts.upper.reshape(n, *shape))
        d, D = own.d[self.clauses].reshape(1, -1).expand(n, -1), None
        if own.D is not None:
            D = own.D[self.clauses].flatten(0, 1).expand(n, -1, -1)
        return Shifted(box, D, d)

    def _rows(self, n: int) -> Tensor:
        """Coefficients of the outputs ``(n, c * r, *output)``."""
        C, shape = self.search.rows.C[self.clauses], self.search.graph.output_shape
        return C.reshape(1, -1, *shape).expand(n, -1, *shape)

    def _linear(
        self, region: Shifted, state: State, parameters: Mapping[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients ``(n, c, r, p)``, constants and least values ``(n, c, r)``."""
        graph, rows = self.search.graph, self._rows(len(region.d))
        bound = pull_back(graph, len(graph.nodes) - 1, rows, state, parameters=parameters)
        A, b = region.full(bound.A), bound.constant + region.d
        value = region.minimum(bound.A) + bound.constant
        shape = len(value), *self.search.rows.d[self.clauses].shape
        return A.reshape(*shape, -1), b.reshape(shape), value.reshape(shape)


def _by_row(parameters: Mapping[int, Tensor], A: Tensor) -> dict[int, Tensor]:
    """Slopes ``(n, c, r, *shape)`` of the relaxations with a single choice."""
    return {
        i: t[0].reshape(*A.shape[:3], *t.shape[3:]) for i, t in parameters.items() if len(t) == 1
    }
