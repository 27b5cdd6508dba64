"""SuperDeepFool (Abdolahpourrostam et al., 2024, arXiv:2303.12481), the variant SDF(inf, 1).

DeepFool runs until the answer changes; its end is projected onto the normal of the boundary there,
which is where the nearest point of a flat boundary would lie; and so on until the projection itself
fools. A bisection towards x ends the search.

Differences from the paper: DeepFool's steps are those of :mod:`holdfast.attacks.deepfool`, by
default along the likeliest wrong class alone (a tenth of the passes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, gaps_of, goal_of, n_aims
from holdfast.attacks._domain import clipped, ends_of
from holdfast.attacks._hyperplane import TINY, nearest_class, shortest
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.attacks.deepfool import BEYOND
from holdfast.rows import like, static_field
from holdfast.threat import Access, AllowedSet

BISECTIONS = 10  # the authors'


@dataclass(frozen=True, slots=True)
class SuperDeepFoolState:
    """Rows walk with DeepFool, look at a projection, or bisect between x and ``end``."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    x: Tensor
    end: Tensor
    low: Tensor
    high: Tensor
    is_projection: Tensor
    n_bisections: Tensor
    step: Tensor
    finished: Tensor
    width: int = static_field()


@final
@dataclass(frozen=True, slots=True)
class SuperDeepFool(Attack):
    """DeepFool, brought back towards x along the boundary's normal, again and again.

    Attributes:
        steps: Points asked for at most, the bisection included.
        overshoot: Of DeepFool's steps.
        n_classes: Wrong classes linearised per step, at most; each costs a backward pass.
    """

    card: ClassVar[Card] = Card(
        name="super_deepfool",
        title="DeepFool, brought back along the normal of the boundary it has found",
        paper=(
            "Abdolahpourrostam, Abroshan and Moosavi-Dezfooli (2024), Revisiting DeepFool: "
            "generalization and improvement, arXiv:2303.12481"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l2"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 100
    overshoot: float = 0.02
    n_classes: int = 1

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("super_deepfool", steps=(self.steps, 1), n_classes=(self.n_classes, 1))
        require_at_least("super_deepfool", overshoot=(self.overshoot, 0))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> SuperDeepFoolState:
        """Start at x."""
        zero = torch.zeros_like(problem.y)
        share = torch.zeros(zero.shape, dtype=problem.x.dtype, device=problem.x.device)
        return SuperDeepFoolState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            x=problem.x.clone(),
            end=problem.x.clone(),
            low=share,
            high=torch.ones_like(share),
            is_projection=zero > 0,
            n_bisections=zero,
            step=zero.clone(),
            finished=zero > 0,
            width=n_aims(problem, self.n_classes),
        )

    def ask(self, state: SuperDeepFoolState) -> Query:
        """The gaps to the likeliest wrong classes, with a gradient each."""
        return Query(state.x, gaps_of(state.y, state.target, state.goal, state.width))

    def tell(self, state: SuperDeepFoolState, answer: Answer) -> SuperDeepFoolState:
        """Walk on, project, or halve the way to x."""
        won = fools(answer.logits, state.y, state.goal)
        is_bisecting = state.n_bisections > 0
        is_late = state.step + 1 >= self.steps - BISECTIONS
        has_end = (state.end != state.allowed.x).flatten(1).any(1)
        begins = ~is_bisecting & ((won & (state.is_projection | is_late)) | (is_late & has_end))
        state = replace(state, end=_keep(won & ~is_bisecting, state.x, state.end))
        low = torch.where(is_bisecting & ~won, (state.low + state.high) / 2, state.low)
        high = torch.where(is_bisecting & won, (state.low + state.high) / 2, state.high)
        bisected = state.allowed.towards(state.end, (low + high) / 2)
        walked = torch.where(
            like(won, state.x), _projected(state, answer), self._step(state, answer)
        )
        n_bisections = state.n_bisections + (is_bisecting | begins)
        x = torch.where(like(n_bisections > 0, state.x), bisected, walked)
        is_stuck = (n_bisections == 0) & (x == state.x).flatten(1).all(1)
        step = state.step + 1
        return replace(
            state,
            x=x,
            low=low,
            high=high,
            is_projection=won & (n_bisections == 0),
            n_bisections=n_bisections,
            step=step,
            finished=is_stuck | (n_bisections > BISECTIONS) | (step >= self.steps),
        )

    def _step(self, state: SuperDeepFoolState, answer: Answer) -> Tensor:
        """DeepFool's."""
        gap, w = nearest_class(answer, "l2")
        d = shortest("l2", state.x, w, gap.abs() + BEYOND, ends_of(state.allowed))
        return clipped(state.x + (1 + self.overshoot) * d, state.allowed)


def _projected(state: SuperDeepFoolState, answer: Answer) -> Tensor:
    """``x0 + ((x - x0) . w) w`` for the boundary's unit normal w at a point that fools."""
    row = torch.arange(len(state.y), device=state.y.device)
    w = answer.gradients[row, answer.losses.argmax(1)].double()
    w = w / like(w.flatten(1).norm(dim=1).clamp_min(TINY), w)
    along = ((state.x - state.allowed.x).double() * w).flatten(1).sum(1)
    change = (like(along, w) * w).to(state.x.dtype)
    return clipped(state.allowed.x + change, state.allowed)


def _keep(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(like(mask, new), new, old)
