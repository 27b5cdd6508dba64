"""Shrinking ball: projected ascent in a ball that follows the boundary.

Looks for the smallest change. Like FMN (Pintor et al., 2021, arXiv:2102.12827) it shrinks the ball
while the point fools and lets it grow while it does not; like APGD (Croce and Hein, 2020,
arXiv:2003.01690) it climbs by steepest steps of the norm's own geometry with momentum, on a loss
that does not depend on the scale of the logits, with steps measured in radii of the ball. So one
step size fits every network, norm and domain.

Differences from both: the ball never grows back to the size of a change that is known to fool, nor
beyond the threat's radius; until the first success it grows from the linearised boundary on; deep
behind the boundary it shrinks faster, as the linearisation says. The ratio of logits has valleys
without a way out: rows that it has led nowhere climb the margin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import cosine, ends_of, norm_of
from holdfast.attacks._hyperplane import TINY, dual_length, length
from holdfast.attacks._losses import loss_named, margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

LAST = 0.01  # of the step size, against the first one, as in FMN
LAST_GAMMA = 0.001  # as in FMN
FASTEST = 0.8  # of the radius: what remains of it after one step at least
PATIENCE = 0.25  # of the steps without success, before the margin is climbed instead of the loss
FIRST_SHARE, SPREAD = 0.2, 1.5  # coordinates of an l1 step: at first, and against those changed


@dataclass(frozen=True, slots=True)
class ShrinkingBallState:
    """The point of every row, the one before, and the radius they are held within."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    x: Tensor
    x_before: Tensor
    radius: Tensor
    best: Tensor
    share: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class ShrinkingBall(Attack):
    """The smallest change: steepest steps with momentum within a ball that follows the boundary.

    Attributes:
        steps: Gradient steps.
        loss: ``dlr``, ``margin`` or ``ce``.
        n_targets: 0: one untargeted run. Otherwise runs towards the likeliest wrong classes.
        step_size: The first, in radii; falls along a cosine to a hundredth.
        gamma: Share by which the radius grows or shrinks at first; falls to 0.001.
        momentum: Weight of the new step against the last one.
    """

    card: ClassVar[Card] = Card(
        name="shrinking_ball",
        title="the smallest change, by steepest steps within a ball that follows the boundary",
        paper=(
            "No paper of its own: the ball of Pintor et al. (2021), arXiv:2102.12827, with the "
            "steps of Croce and Hein (2020), arXiv:2003.01690"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2", "l1"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 200
    loss: str = "dlr"
    n_targets: int = 0
    step_size: float = 0.5
    gamma: float = 0.05
    momentum: float = 0.75

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        loss_named(self.loss)
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("shrinking_ball", steps=(self.steps, 1), n_targets=(self.n_targets, 0))
        require_at_least("shrinking_ball", step_size=(self.step_size, tiny), gamma=(self.gamma, 0))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> ShrinkingBallState:
        """Start at x, or at the points given."""
        zero = torch.zeros_like(problem.y)
        start = problem.x if problem.start is None else problem.start
        far = torch.full(zero.shape, torch.inf, dtype=problem.x.dtype, device=zero.device)
        return ShrinkingBallState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            x=start.clone(),
            x_before=start.clone(),
            radius=length(start - problem.x, norm_of(problem.allowed)).to(far.dtype),
            best=far,
            share=torch.full_like(far, FIRST_SHARE),
            step=zero,
            finished=zero > 0,
        )

    def ask(self, state: ShrinkingBallState) -> Query:
        """Loss and gradient at the point; the margin's where the loss has led nowhere."""
        is_lost = state.best.isinf() & (state.step >= PATIENCE * self.steps)
        function = partial(_loss_or_margin, name=self.loss)
        return Query(state.x, Objective(function, (state.y, state.target, is_lost)))

    def tell(self, state: ShrinkingBallState, answer: Answer) -> ShrinkingBallState:
        """Adapt the radius, then take a step."""
        state = self._resized(state, answer)
        ball = state.allowed.resized(state.radius)
        rate = cosine(state.step, self.steps, self.step_size, LAST * self.step_size)
        size = like(rate.to(state.radius.dtype) * state.radius, state.x)
        z = ball.project(state.x + size * _direction(state, answer.gradients))
        weight = torch.where(state.step > 0, self.momentum, 1.0).to(state.x.dtype)
        a = like(weight, state.x)
        x = ball.project(state.x + a * (z - state.x) + (1 - a) * (state.x - state.x_before))
        step = state.step + 1
        return replace(state, x=x, x_before=state.x, step=step, finished=step >= self.steps)

    def _resized(self, state: ShrinkingBallState, answer: Answer) -> ShrinkingBallState:
        """The next radius: smaller after a point that fools, larger after any other."""
        norm, delta = norm_of(state.allowed), state.x - state.allowed.x
        size, limit = length(delta, norm), state.allowed.radius.to(state.radius.dtype)
        won = fools(answer.logits, state.y, state.goal)
        is_nearer = won & (size < state.best)
        best = torch.where(is_nearer, size, state.best)
        gamma = cosine(state.step, self.steps, self.gamma, LAST_GAMMA).to(size.dtype)
        slope = dual_length(answer.gradients.flatten(1), norm).clamp_min(TINY)
        reach = answer.losses.abs().to(size.dtype) / slope
        ahead = size + reach
        before = torch.where(best.isfinite(), state.radius, state.radius.maximum(ahead))
        grown = (before * (1 + gamma)).minimum(best * (1 - LAST_GAMMA))
        near = (1 - reach / size.clamp_min(TINY)).clamp_min(FASTEST).minimum(1 - gamma)
        shrunk = torch.minimum(state.radius, best) * near
        n_changed = (delta != 0).flatten(1).sum(1).to(size.dtype)
        share = n_changed / (SPREAD * delta[0].numel())
        return replace(
            state,
            best=best,
            radius=torch.where(won, shrunk, grown).minimum(limit),
            share=torch.where(is_nearer, share, state.share),
        )


def _loss_or_margin(
    logits: Tensor, y: Tensor, target: Tensor, is_lost: Tensor, *, name: str
) -> Tensor:
    """The loss called ``name``, or the margin in rows that are lost ``(n,)``."""
    loss = loss_named(name)(logits, y, target)
    return torch.where(is_lost, margin(logits, y, target), loss)


def _direction(state: ShrinkingBallState, gradient: Tensor) -> Tensor:
    """The steepest step of unit size; in l1 spread equally over the largest entries."""
    if norm_of(state.allowed) != "l1":
        return state.allowed.direction(gradient)
    lower, upper = ends_of(state.allowed)
    held = ((gradient > 0) & (state.x >= upper)) | ((gradient < 0) & (state.x <= lower))
    g = torch.where(held, 0.0, gradient).flatten(1)
    m = g.shape[1]
    n_moved = (state.share * m).long().clamp(1, m)
    level = g.abs().sort(dim=1).values.gather(1, (m - n_moved)[:, None])
    chosen = torch.where(g.abs() >= level, g, 0.0).sign()
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp_min(1.0)).reshape(gradient.shape)
