"""Random search first, then gradients from where it came: for gradients that mislead near x.

Square's windows (Andriushchenko et al., 2020, arXiv:1912.00049) find the right part of the allowed
set without gradients, and slowly; gradient steps finish what it began in a few passes. Where a
model's gradients are partly masked, this finds in some hundred passes what Square alone finds in
5,000. The first phase is :class:`~holdfast.attacks.square.Square` with its schedule squeezed into
``queries``; the second climbs the margin with a cosine schedule of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.attacks.square import Square, SquareState
from holdfast.rows import like
from holdfast.threat import Access

SEARCH, CLIMB, LOOK = 0, 1, 2  # phases: random search; a gradient step; the last point


@dataclass(frozen=True, slots=True)
class SquarePGDState:
    """One row per job: the search's own state, then the iterate of the climb."""

    search: SquareState
    x: Tensor
    step: Tensor
    kind: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class SquarePGD(Attack):
    """A short random search whose best point is the start of gradient steps.

    Attributes:
        queries: Points of the search.
        steps: Gradient steps after it.
        first_step: Length of the first in radii; later ones follow a cosine down to 0.
        restarts: Independent searches; the next runs only where the last one failed.
    """

    card: ClassVar[Card] = Card(
        name="square_pgd",
        title="a short random search, then gradient steps from its best point",
        paper="Andriushchenko, Croce, Flammarion and Hein (2020), arXiv:1912.00049, and Madry et "
        "al. (2018), arXiv:1706.06083, one after the other",
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2"}),
        is_blind=True,
    )

    queries: int = 500
    steps: int = 40
    first_step: float = 0.5
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("square_pgd", queries=(self.queries, 1), steps=(self.steps, 1))
        require_at_least("square_pgd", restarts=(self.restarts, 1))

    @property
    def max_queries(self) -> int:
        """Those of the search, then the points of the climb."""
        return self.queries + self.steps + 1

    @property
    def _square(self) -> Square:
        return Square(queries=self.queries, rescale_schedule=True)

    def init(self, problem: Problem) -> SquarePGDState:
        """The search's start."""
        zero = torch.zeros_like(problem.y)
        search = self._square.init(problem)
        return SquarePGDState(search, problem.x, zero, zero.clone(), zero > 0)

    def phase(self, state: SquarePGDState) -> Tensor:
        """No gradient, one gradient, none."""
        return state.kind

    def ask(self, state: SquarePGDState) -> Query:
        """The search's point, or the climb's."""
        kind = int(state.kind[0]) if len(state.kind) else SEARCH
        if kind == SEARCH:
            return self._square.ask(state.search)
        if kind == CLIMB:
            search = state.search
            return Query(state.x, Objective(margin, (search.y, search.target)))
        return Query(state.x)

    def tell(self, state: SquarePGDState, answer: Answer) -> SquarePGDState:
        """One step of the phase."""
        kind = int(state.kind[0]) if len(state.kind) else SEARCH
        if kind == SEARCH:
            search = self._square.tell(state.search, answer)
            over = search.finished
            x = torch.where(like(over, state.x), search.best, state.x)
            return replace(state, search=search, x=x, kind=torch.where(over, CLIMB, SEARCH))
        if kind == LOOK:
            return replace(state, finished=torch.ones_like(state.finished))
        allowed = state.search.allowed
        turn = (1 + torch.cos(math.pi * state.step / self.steps)) / 2
        length = self.first_step * allowed.radius * turn.to(state.x.dtype)
        direction = allowed.direction(answer.gradients, state.x)
        x = allowed.project(state.x + like(length, direction) * direction)
        step = state.step + 1
        return replace(state, x=x, step=step, kind=torch.where(step >= self.steps, LOOK, CLIMB))
