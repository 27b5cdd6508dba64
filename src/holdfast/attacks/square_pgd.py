"""Random search and gradients in turns: for gradients that mislead near x.

Square's windows (Andriushchenko et al., 2020, arXiv:1912.00049) find the right part of the allowed
set without gradients, and slowly; gradient steps finish what it began in a few passes. Begun at the
best point that gradients found, the search needs a fraction of the queries that it needs from
stripes; and how much of the clean margin is left says after a few queries whether more are worth
it. A job is a warm-up (one run of :class:`~holdfast.attacks.malt.MALT`), then rounds: a search from
the best point so far, with the schedule of :class:`~holdfast.attacks.square.Square` squeezed into
``queries``, and gradient steps up the margin from where it came, their length a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin, margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.attacks.malt import LOOK as WARM_LOOK
from holdfast.attacks.malt import MALT, RANK, MALTState, share_left
from holdfast.attacks.square import Square, SquareState
from holdfast.rows import copied, like, take
from holdfast.threat import Access

SEARCH, CLIMB, LOOK = 3, 4, 5  # phases after those of MALT: random search; a step; the last point
_SOONEST = 20  # queries before a search may be given up


@dataclass(frozen=True, slots=True)
class SquarePGDState:
    """One row per job.

    Attributes:
        malt: The warm-up's own state.
        search: The search's.
        target: Class to step towards, or -1.
        clean: The goal's margin at x, negative.
        best, best_margin: The point of largest margin met, and that margin.
        x: The iterate of the steps.
        left: Share of the clean margin that was left when the round began.
        round, step: Which round this is, and which gradient step of it.
    """

    malt: MALTState
    search: SquareState
    y: Tensor
    target: Tensor
    goal: Tensor
    clean: Tensor
    best: Tensor
    best_margin: Tensor
    x: Tensor
    left: Tensor
    round: Tensor
    step: Tensor
    kind: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class SquarePGD(Attack):
    """Rounds of a random search and of gradient steps, each from the best point so far.

    Attributes:
        queries: Points of a round's search.
        steps: Gradient steps after it.
        first_step: Length of the first in radii; later ones follow a cosine down to 0.
        warmup: Gradient steps before the first search, which begins where they ended; 0: none, the
            first search begins at random stripes.
        runs: Runs of the warm-up at most, each from a random point but the first; run ``j > 0`` is
            made where ``j`` times the share of the clean margin that is left is below ``effort``.
        candidates: Wrong classes that the warm-up ranks by their gradients.
        rounds: Rounds per job at most.
        effort: After a warm-up, round ``j`` is made where ``j + 1`` times the share of the clean
            margin that is left is below this.
        p_init: Share of the input that the first windows of a search cover.
        squeeze: Shrink the windows faster than :class:`~holdfast.attacks.square.Square` does, so
            that its whole schedule fits into ``queries``; else at its own pace.
        stall: A round that leaves more than this share of what it began with is the last.
        patience: A search goes on while its queries times the share left are below this; at 20, a
            sample with a tenth left gets 200.
        restarts: Independent jobs; the next runs only where the last one failed.
    """

    card: ClassVar[Card] = Card(
        name="square_pgd",
        title="random search and gradient steps in turns, most where the margin is nearly gone",
        paper="Andriushchenko, Croce, Flammarion and Hein (2020), arXiv:1912.00049, and Madry et "
        "al. (2018), arXiv:1706.06083, one after the other",
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2"}),
        is_blind=True,
        takes_start=True,
    )

    queries: int = 500
    steps: int = 40
    first_step: float = 0.5
    warmup: int = 0
    runs: int = 1
    candidates: int = 20
    rounds: int = 1
    effort: float = 1.0
    patience: float = math.inf
    p_init: float = 0.8
    squeeze: bool = True
    stall: float = 1.0
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("square_pgd", queries=(self.queries, 1), steps=(self.steps, 1))
        require_at_least("square_pgd", restarts=(self.restarts, 1), rounds=(self.rounds, 1))
        require_at_least("square_pgd", runs=(self.runs, 1))
        require_at_least("square_pgd", warmup=(self.warmup, 0), candidates=(self.candidates, 1))
        require_at_least("square_pgd", effort=(self.effort, 0), patience=(self.patience, 0))
        require_at_least("square_pgd", stall=(self.stall, 0))
        Square(p_init=self.p_init)  # refuses what is no share

    @property
    def max_queries(self) -> int:
        """Those of the warm-up or of the start, then per round of the search and of the steps."""
        first = self._malt.max_queries if self.warmup else 1
        return first + self.rounds * (self.queries + self.steps + 1)

    @property
    def _square(self) -> Square:
        return Square(queries=self.queries, p_init=self.p_init, rescale_schedule=self.squeeze)

    @property
    def _malt(self) -> MALT:
        return MALT(
            steps=max(self.warmup, 1),
            runs=self.runs,
            effort=self.effort,
            candidates=self.candidates,
        )

    def init(self, problem: Problem) -> SquarePGDState:
        """The warm-up's start, or the search's."""
        zero = torch.zeros_like(problem.y)
        malt = self._malt.init(problem)
        kind = malt.kind if self.warmup else torch.full_like(zero, SEARCH)
        if problem.start is not None:
            kind = torch.full_like(zero, LOOK)
        return SquarePGDState(
            malt=malt,
            search=self._square.init(problem),
            y=problem.y,
            target=problem.target,
            goal=malt.goal,
            clean=malt.clean,
            best=problem.x,
            best_margin=torch.full_like(malt.clean, -torch.inf),
            x=problem.x if problem.start is None else problem.start,
            left=torch.full_like(malt.clean, 1.0 if problem.start is None else torch.inf),
            round=zero if problem.start is None else zero - 1,
            step=zero.clone(),
            kind=kind,
            finished=zero > 0,
        )

    def phase(self, state: SquarePGDState) -> Tensor:
        """The warm-up's phases; then no gradient, one gradient, none."""
        return state.kind

    def ask(self, state: SquarePGDState) -> Query:
        """The warm-up's points, the search's, or the steps'."""
        kind = _kind(state)
        if kind < SEARCH:
            return self._malt.ask(state.malt)
        if kind == SEARCH:
            return self._square.ask(state.search)
        if kind == CLIMB:
            return Query(state.x, Objective(margin, (state.y, state.target)))
        return Query(state.x)

    def tell(self, state: SquarePGDState, answer: Answer) -> SquarePGDState:
        """One step of the phase."""
        kind = _kind(state)
        if kind == SEARCH:
            return self._searched(state, answer)
        if kind != RANK:
            points = state.malt.x if kind < SEARCH else state.x
            state = _remembered(state, points, answer)
        if kind < SEARCH:
            return self._warmed(state, answer)
        return self._climbed(state, answer) if kind == CLIMB else self._next_round(state)

    def ahead(self, state: SquarePGDState, n: int) -> SquarePGDState | None:
        """The queries of a search that come next where none of them raises the margin."""
        if _kind(state) != SEARCH:
            return None
        rows, _ = copied(state.y, n)
        search = self._square.ahead(state.search, n)
        return replace(
            take(state, rows), search=search, finished=self._is_over(search, state.clean[rows])
        )

    def is_fruitless(self, state: SquarePGDState, answer: Answer) -> Tensor:
        """The margin fell."""
        return self._square.is_fruitless(state.search, answer)

    def _warmed(self, state: SquarePGDState, answer: Answer) -> SquarePGDState:
        """A step of the warm-up; after the last of its runs, the search from its best point.

        Where it came no nearer than x, the search begins at its own stripes.
        """
        is_end = _kind(state) == WARM_LOOK
        malt = self._malt.tell(state.malt, answer)
        state = replace(state, malt=malt, kind=malt.kind)
        if not is_end:
            return state
        left = share_left(state.best_margin, state.clean)
        old = state.search
        new = self._square.begin(old, state.best, state.best_margin)
        nearer = state.best_margin > state.clean
        mask = like(nearer, state.best)
        search = replace(  # of a row that has another run, begun again after that
            new,
            points=torch.where(mask, new.points, old.points),
            best=torch.where(mask, new.best, old.best),
            best_margin=torch.where(nearer, new.best_margin, old.best_margin),
        )
        return replace(
            state,
            search=search,
            left=left,
            kind=torch.where(malt.finished, SEARCH, malt.kind),
            finished=malt.finished & (left >= self.effort),
        )

    def _searched(self, state: SquarePGDState, answer: Answer) -> SquarePGDState:
        """A query of the search; where it is over, the steps begin at its best point."""
        search = self._square.tell(state.search, answer)
        over = self._is_over(search, state.clean)
        return replace(
            state,
            search=search,
            best=search.best,
            best_margin=search.best_margin,
            x=torch.where(like(over, state.x), search.best, state.x),
            step=torch.zeros_like(state.step),
            kind=torch.where(over, CLIMB, SEARCH),
        )

    def _is_over(self, search: SquareState, clean: Tensor) -> Tensor:
        """Whether a search has had all its queries, or as many as it is worth."""
        worth = search.step * share_left(search.best_margin, clean)
        return search.finished | ((search.step >= _SOONEST) & (worth >= self.patience))

    def _climbed(self, state: SquarePGDState, answer: Answer) -> SquarePGDState:
        allowed = state.search.allowed
        turn = (1 + torch.cos(math.pi * state.step / self.steps)) / 2
        length = self.first_step * allowed.radius * turn.to(state.x.dtype)
        direction = allowed.direction(answer.gradients, state.x)
        x = allowed.project(state.x + like(length, direction) * direction)
        step = state.step + 1
        return replace(state, x=x, step=step, kind=torch.where(step >= self.steps, LOOK, CLIMB))

    def _next_round(self, state: SquarePGDState) -> SquarePGDState:
        """A search from the best point so far, where that is worth it."""
        number = state.round + 1
        left = share_left(state.best_margin, state.clean)
        finished = (number >= self.rounds) | ((number + 1) * left >= self.effort)
        finished = finished | (left > self.stall * state.left)
        return replace(
            state,
            search=self._square.begin(state.search, state.best, state.best_margin),
            round=number,
            left=left,
            kind=torch.where(finished, LOOK, SEARCH),
            finished=finished,
        )


def _kind(state: SquarePGDState) -> int:
    return int(state.kind[0]) if len(state.kind) else SEARCH


def _remembered(state: SquarePGDState, points: Tensor, answer: Answer) -> SquarePGDState:
    """The best point so far."""
    size = goal_margin(answer.logits.float(), state.y, state.goal).to(state.best_margin.dtype)
    is_better = size > state.best_margin
    return replace(
        state,
        best=torch.where(like(is_better, points), points, state.best),
        best_margin=torch.where(is_better, size, state.best_margin),
    )
