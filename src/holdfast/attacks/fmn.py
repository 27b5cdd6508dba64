"""Fast Minimum-Norm attack (Pintor et al., 2021, arXiv:2102.12827), in linf, l2, l1 and l0.

Gradient steps on the margin, projected onto a ball whose radius shrinks while the point fools and
grows while it does not; before the first success the radius is the distance to the linearised
boundary.

Differences from the paper: every projection is the exact one onto ball and domain together; before
the first success the radius goes a little beyond the linearised boundary, or the point would stay
on it; step sizes are measured in widths of the domain. (A known implementation of the l2 projection
clamps the point instead of the factor: here a point inside the ball stays where it is.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import clipped, cosine, ends_of, norm_of, width_of
from holdfast.attacks._hyperplane import dual_length, length
from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

LAST = 0.01  # of the step size, against the first one; the authors'
LAST_GAMMA = 0.001  # the authors'


@dataclass(frozen=True, slots=True)
class FMNState:
    """The point of every row, and the radius it is held within."""

    allowed: AllowedSet
    y: Tensor
    goal: Tensor
    x: Tensor
    radius: Tensor
    best: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class FMN(Attack):
    """The smallest change: gradient steps within a ball that follows the boundary.

    Attributes:
        steps: Gradient steps.
        step_size: The first, in widths of the domain; falls along a cosine to a hundredth.
        gamma: Share by which the radius grows or shrinks at first; falls to 0.001.
    """

    card: ClassVar[Card] = Card(
        name="fmn",
        title="the smallest change, by gradient steps within a ball that follows the boundary",
        paper=(
            "Pintor et al. (2021), Fast Minimum-norm Adversarial Attacks through Adaptive Norm "
            "Constraints, arXiv:2102.12827"
        ),
        access=Access.GRADIENTS,
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 200
    step_size: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("fmn", steps=(self.steps, 1), gamma=(self.gamma, 0))
        require_at_least("fmn", step_size=(self.step_size, tiny))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> FMNState:
        """Start at x."""
        zero = torch.zeros_like(problem.y)
        far = torch.full(zero.shape, torch.inf, dtype=problem.x.dtype, device=zero.device)
        return FMNState(
            allowed=problem.allowed,
            y=problem.y,
            goal=goal_of(problem),
            x=problem.x.clone(),
            radius=torch.ones_like(far) if norm_of(problem.allowed) == "l0" else far,
            best=far.clone(),
            step=zero,
            finished=zero > 0,
        )

    def ask(self, state: FMNState) -> Query:
        """The goal's margin and its gradient."""
        return Query(state.x, Objective(goal_margin, (state.y, state.goal)))

    def tell(self, state: FMNState, answer: Answer) -> FMNState:
        """Adapt the radius, step along the gradient, project."""
        norm, x0 = norm_of(state.allowed), state.allowed.x
        won = fools(answer.logits, state.y, state.goal)
        size = length(state.x - x0, norm)
        best = torch.where(won, state.best.minimum(size), state.best)
        gamma = cosine(state.step, self.steps, self.gamma, LAST_GAMMA)
        resize = _counted if norm == "l0" else _scaled
        radius = resize(replace(state, best=best), answer, won, gamma.to(size.dtype))
        radius = radius.minimum(_farthest(state.allowed))
        rate = cosine(state.step, self.steps, self.step_size, LAST * self.step_size)
        rate = (rate * width_of(state.allowed)).to(state.x.dtype)
        g = answer.gradients
        scale = rate / length(g, "l2").clamp_min(torch.finfo(g.dtype).tiny)
        z = state.x + like(scale, g) * g
        step = state.step + 1
        return replace(
            state,
            x=clipped(state.allowed.resized(radius).project(z), state.allowed),
            radius=radius,
            best=best,
            step=step,
            finished=step >= self.steps,
        )


def _scaled(state: FMNState, answer: Answer, won: Tensor, gamma: Tensor) -> Tensor:
    """The next radius ``(n,)``: the distance to the linearised boundary until one point fools."""
    norm = norm_of(state.allowed)
    slope = dual_length(answer.gradients.flatten(1), norm).clamp_min(1e-12)
    ahead = length(state.x - state.allowed.x, norm) + answer.losses.abs().to(slope.dtype) / slope
    smaller = (state.radius * (1 - gamma)).minimum(state.best)
    before = torch.where(state.best.isfinite(), state.radius, ahead)
    return torch.where(won, smaller, before * (1 + gamma))


def _counted(state: FMNState, answer: Answer, won: Tensor, gamma: Tensor) -> Tensor:
    """The next number of coordinates ``(n,)``: one less or more at least."""
    smaller = (state.radius - 1).minimum((state.radius * (1 - gamma)).floor()).minimum(state.best)
    larger = (state.radius + 1).maximum((state.radius * (1 + gamma)).floor())
    return torch.where(won, smaller, larger).clamp_min(1.0)


def _farthest(allowed: AllowedSet) -> Tensor:
    """The size of the change to the farthest corner of the domain ``(n,)``."""
    lower, upper = ends_of(allowed)
    return length(torch.maximum(upper - allowed.x, allowed.x - lower), norm_of(allowed))
