"""Sparse-RS: random search over the places that change, for l0, without gradients.

Croce, Andriushchenko, Singh, Flammarion and Hein (2022, arXiv:2006.12834), algorithm 1 with the
moves for l0. A set of eps places holds values at the ends of the domain; each step swaps some of
them, fewer and fewer, for places outside, and keeps the new set where the margin did not fall. So a
place gets another value only after it was out of the set, as published.

Differences from the paper and its reference code: a place is one coordinate, as in the threat, not
a pixel with all its channels; every row draws its own places (the code swaps the same ranks in the
whole batch); a new value always differs from the clean one, so that no place is spent on nothing;
an equal margin is accepted; a target's margin is taken against all other classes (the code: the
cross-entropy of the target).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_schedule
from holdfast.attacks._places import drawn_from, painted
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.engine.random import Rng
from holdfast.rows import copied, like, take, where
from holdfast.threat import Access, AllowedSet

ENDS = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which fewer places are swapped."""
DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
"""What ``p_init`` is divided by before, between and after them; the authors' code."""


@dataclass(frozen=True, slots=True)
class SparseRSState:
    """One row per job: the best set of places so far, and the set proposed next.

    Attributes:
        places: Where ``best`` may differ from x ``(n, m)`` bool, for m coordinates.
        proposed: Where ``points`` may.
    """

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    rng: Rng
    step: Tensor
    best: Tensor
    places: Tensor
    best_margin: Tensor
    points: Tensor
    proposed: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class SparseRS(Attack):
    """Random search over sets of eps coordinates and their values, forward passes only.

    Attributes:
        queries: Points per job, the starting point among them.
        p_init: Share of the places that the first steps swap; the authors take 0.3, and 0.1 with a
            target.
        restarts: Jobs per sample.
    """

    card: ClassVar[Card] = Card(
        name="sparse_rs",
        title="random search over the coordinates that change, without gradients",
        paper="Croce, Andriushchenko, Singh, Flammarion and Hein (2022), Sparse-RS, "
        "arXiv:2006.12834",
        access=Access.SCORES,
        norms=frozenset({"l0"}),
    )

    queries: int = 10_000
    p_init: float = 0.3
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot run."""
        require_schedule("Sparse-RS", self.queries, self.restarts, self.p_init)

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.queries

    def init(self, problem: Problem) -> SparseRSState:
        """Start from random values in random places."""
        bits = problem.rng.bits((problem.x[0].numel(),))
        everywhere = torch.ones_like(bits, dtype=torch.bool)
        places = drawn_from(everywhere, bits, _n_places(problem.allowed))
        points = painted(problem.allowed, problem.x, places, bits)
        return SparseRSState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            rng=problem.rng,
            step=torch.zeros_like(problem.y),
            best=points.clone(),
            places=places,
            best_margin=torch.full_like(points.flatten(1)[:, 0], -torch.inf),
            points=points,
            proposed=places.clone(),
            finished=torch.zeros_like(problem.y, dtype=torch.bool),
        )

    def ask(self, state: SparseRSState) -> Query:
        """The proposed point; its logits are enough."""
        return Query(state.points)

    def tell(self, state: SparseRSState, answer: Answer) -> SparseRSState:
        """Keep the set where the margin did not fall, and propose the next one."""
        gain = _gain(state, answer)
        is_better = gain >= state.best_margin
        step = state.step + 1
        state = replace(
            state,
            step=step,
            best=torch.where(like(is_better, state.best), state.points, state.best),
            places=torch.where(is_better[:, None], state.proposed, state.places),
            best_margin=torch.where(is_better, gain, state.best_margin),
            finished=step >= self.queries,
        )
        return _swapped(state, self._n_swaps(state))

    def ahead(self, state: SparseRSState, n: int) -> SparseRSState:
        """The sets that come next where none of them raises the margin."""
        rows, passed = copied(state.y, n)
        states = take(state, rows)
        states = replace(states, step=states.step + passed)
        states = replace(states, finished=states.step >= self.queries)
        return where(passed > 0, _swapped(states, self._n_swaps(states)), states)

    def is_fruitless(self, state: SparseRSState, answer: Answer) -> Tensor:
        """The margin fell."""
        return ~(_gain(state, answer) >= state.best_margin)

    def _n_swaps(self, state: SparseRSState) -> Tensor:
        """How many places the next query swaps ``(n,)``: at least one where there is one."""
        device = state.step.device
        step = state.step * 10_000 // self.queries
        level = torch.bucketize(step, torch.tensor(ENDS, device=device))
        share = self.p_init / torch.tensor(DIVISORS, dtype=torch.float64, device=device)[level]
        n_places = state.places.sum(1)
        return torch.minimum((share * n_places).to(torch.int64).clamp_min(1), n_places)


def _gain(state: SparseRSState, answer: Answer) -> Tensor:
    """The margin of the points asked for ``(n,)``."""
    return goal_margin(answer.logits, state.y, state.target).to(state.best.dtype)


def _n_places(allowed: AllowedSet) -> Tensor:
    """How many coordinates may change ``(n,)`` int64."""
    return allowed.radius.clamp_max(allowed.x[0].numel()).to(torch.int64)


def _swapped(state: SparseRSState, n_swaps: Tensor) -> SparseRSState:
    """So many places of the best set go back to x, and others take their turn.

    Where too few lie outside the set, some that leave come back with another value.
    """
    bits = state.rng.fold(state.step).bits((state.places.shape[1],))
    leaving = drawn_from(state.places, bits, n_swaps)
    n_outside = (~state.places).sum(1)
    entering = drawn_from(~state.places, bits, n_swaps)
    entering |= drawn_from(leaving, bits, (n_swaps - n_outside).clamp_min(0))
    x = state.allowed.x
    kept = torch.where(leaving.reshape(x.shape), x, state.best)
    return replace(
        state,
        points=painted(state.allowed, kept, entering, bits),
        proposed=(state.places & ~leaving) | entering,
    )
