"""Pointwise (Schott et al., 2019, arXiv:1805.09190): few changed coordinates, by labels alone.

From random noise that fools the model, coordinates go back to their clean values as long as it is
fooled; where none can go back any more, another noise is the next start.

Differences from the paper: groups of coordinates are tried together, twice as many after a success
and half as many after a failure, which takes tens of queries instead of one per coordinate; noise
begins sparse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks._places import drawn_from, painted
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.engine.random import Rng
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

DENSITIES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the coordinates that the noises of one start after the other change."""


@dataclass(frozen=True, slots=True)
class PointwiseState:
    """A row either looks for a noise that fools the model, or undoes parts of one that does.

    Attributes:
        x: The point that fools the model, where there is one.
        has_x: Whether there is.
        group: How many coordinates are tried together.
        tried: Those that the asked point sets back ``(n, m)`` bool.
        needed: Those whose going back alone was in vain ``(n, m)`` bool.
        is_new: Whether a coordinate went back since ``needed`` was last emptied.
        start: Noises tried.
    """

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    rng: Rng
    step: Tensor
    start: Tensor
    x: Tensor
    has_x: Tensor
    points: Tensor
    group: Tensor
    tried: Tensor
    needed: Tensor
    is_new: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class Pointwise(Attack):
    """Undo what is not needed of a random noise that fools the model.

    Attributes:
        queries: Points per sample.
    """

    card: ClassVar[Card] = Card(
        name="pointwise",
        title="undoes what is not needed of a random noise, with labels alone",
        paper="Schott, Rauber, Bethge and Brendel (2019), Towards the first adversarially robust "
        "neural network model on MNIST, arXiv:1805.09190",
        access=Access.LABELS,
        norms=frozenset({"l0"}),
        is_minimal=True,
    )

    queries: int = 5000

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("pointwise", queries=(self.queries, 1))

    @property
    def max_queries(self) -> int:
        """As many as the option says."""
        return self.queries

    def init(self, problem: Problem) -> PointwiseState:
        """Every row begins with a noise."""
        zero = torch.zeros_like(problem.y)
        places = torch.zeros_like(problem.x.flatten(1), dtype=torch.bool)
        state = PointwiseState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            rng=problem.rng,
            step=zero,
            start=zero.clone(),
            x=problem.x.clone(),
            has_x=zero > 0,
            points=problem.x.clone(),
            group=zero + 1,
            tried=places,
            needed=places.clone(),
            is_new=zero > 0,
            finished=zero > 0,
        )
        return _proposed(state)

    def ask(self, state: PointwiseState) -> Query:
        """The noise, or the point with some coordinates set back."""
        return Query(state.points)

    def tell(self, state: PointwiseState, answer: Answer) -> PointwiseState:
        """Keep the point where it fools the model, and propose the next one."""
        fools = goal_margin(answer.logits, state.y, state.target) > 0
        step = state.step + 1
        state = replace(state, step=step, finished=step >= self.queries)
        return _proposed(_given_up(_heard(state, fools)))


def _heard(state: PointwiseState, fools: Tensor) -> PointwiseState:
    """The point moves where the model is fooled; the group grows or shrinks."""
    begins, is_undone = fools & ~state.has_x, fools & state.has_x
    in_vain = ~fools & state.has_x
    x = torch.where(like(fools, state.x), state.points, state.x)
    n_changed = (x != state.allowed.x).flatten(1).sum(1)
    group = torch.where(is_undone, 2 * state.group, state.group // 2)
    group = torch.where(begins, n_changed // 2, group).clamp_min(1)
    alone = in_vain & (state.group == 1)
    return replace(
        state,
        x=x,
        has_x=state.has_x | fools,
        group=group,
        needed=state.needed & ~begins[:, None] | (state.tried & alone[:, None]),
        is_new=(state.is_new | is_undone) & ~begins,
        start=state.start + (~fools & ~state.has_x),
    )


def _given_up(state: PointwiseState) -> PointwiseState:
    """Where all coordinates were tried: once more if some went back meanwhile, else a new noise."""
    is_over = state.has_x & ~(_changed(state) & ~state.needed).any(1)
    again = is_over & state.is_new
    ends = is_over & ~again
    return replace(
        state,
        needed=state.needed & ~is_over[:, None],
        is_new=state.is_new & ~is_over,
        group=torch.where(again, 1, state.group),
        has_x=state.has_x & ~ends,
        start=state.start + ends,
    )


def _changed(state: PointwiseState) -> Tensor:
    return (state.x != state.allowed.x).flatten(1)


def _proposed(state: PointwiseState) -> PointwiseState:
    """The next point: a noise, or the last one with a group of coordinates set back."""
    n_places = state.needed.shape[1]
    bits = state.rng.fold(state.step).bits((n_places,))
    shares = torch.tensor(DENSITIES, device=bits.device)
    dense = (shares[state.start % len(DENSITIES)] * n_places).to(torch.int64).clamp_min(1)
    among = torch.where(state.has_x[:, None], _changed(state) & ~state.needed, True)
    chosen = drawn_from(among, bits, torch.where(state.has_x, state.group, dense))
    clean = state.allowed.x
    noise = painted(state.allowed, clean, chosen, bits)
    undone = torch.where(chosen.reshape(clean.shape), clean, state.x)
    return replace(state, points=torch.where(like(state.has_x, clean), undone, noise), tried=chosen)
