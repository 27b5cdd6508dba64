"""sigma-zero (Cina et al., 2025, arXiv:2402.01879): the fewest coordinates that fool.

``min max(gap, 0) + mean(d^2 / (d^2 + sigma))``, a smooth count of the changed coordinates, by Adam
on the change d; coordinates below a threshold are set back to zero after every step, and the
threshold rises while the point fools and falls while it does not.

Differences from the paper: changes are measured in widths of the domain; targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import clipped, cosine, width_of
from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
LAST = 0.1  # of the step size, against the first one; the authors'
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class SigmaZeroState:
    """The point of every row, Adam's moments, and the threshold in widths of the domain."""

    allowed: AllowedSet
    y: Tensor
    goal: Tensor
    x: Tensor
    mean: Tensor
    square: Tensor
    threshold: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class SigmaZero(Attack):
    """The fewest changed coordinates, by gradients of a smooth count and a moving threshold.

    Attributes:
        steps: Adam steps.
        step_size: The first, in widths of the domain; falls along a cosine to a tenth.
        sigma: Smoothness of the count, in squared widths.
        threshold: The first, in widths of the domain.
        threshold_rate: By how much it moves per step, in step sizes.
    """

    card: ClassVar[Card] = Card(
        name="sigma_zero",
        title="the fewest changed coordinates, by gradients of a smooth count",
        paper=(
            "Cina et al. (2025), sigma-zero: Gradient-based Optimization of l0-norm Adversarial "
            "Examples, arXiv:2402.01879"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l0"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_rate: float = 0.01

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("sigma_zero", steps=(self.steps, 1), step_size=(self.step_size, tiny))
        require_at_least("sigma_zero", sigma=(self.sigma, tiny), threshold=(self.threshold, 0))
        require_at_least("sigma_zero", threshold_rate=(self.threshold_rate, 0))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> SigmaZeroState:
        """Start at x, or at the points given."""
        zero = torch.zeros_like(problem.y)
        start = problem.x if problem.start is None else problem.start
        rate = torch.full(zero.shape, self.threshold, dtype=problem.x.dtype, device=zero.device)
        return SigmaZeroState(
            allowed=problem.allowed,
            y=problem.y,
            goal=goal_of(problem),
            x=start.clone(),
            mean=torch.zeros_like(problem.x),
            square=torch.zeros_like(problem.x),
            threshold=rate,
            step=zero,
            finished=zero > 0,
        )

    def ask(self, state: SigmaZeroState) -> Query:
        """The goal's margin and its gradient."""
        return Query(state.x, Objective(goal_margin, (state.y, state.goal)))

    def tell(self, state: SigmaZeroState, answer: Answer) -> SigmaZeroState:
        """One step of Adam; then small changes are undone."""
        x0, width = state.allowed.x, width_of(state.allowed).to(state.x.dtype)
        won = fools(answer.logits, state.y, state.goal)
        change = (state.x - x0) / width
        slope = self._slope(change, answer, width)
        state, direction = _adam(state, slope)
        rate = cosine(state.step - 1, self.steps, self.step_size, LAST * self.step_size)
        rate = rate.to(change.dtype)
        x = clipped(x0 + width * (change - like(rate, change) * direction), state.allowed)
        after = cosine(state.step, self.steps, self.step_size, LAST * self.step_size)
        move = self.threshold_rate * after.to(change.dtype)
        threshold = (state.threshold + torch.where(won, move, -move)).clamp(0.0, 1.0)
        is_small = (x - x0).abs() < like(threshold, x) * width
        return replace(
            state,
            x=torch.where(is_small, x0, x),
            threshold=threshold,
            finished=state.step >= self.steps,
        )

    def _slope(self, change: Tensor, answer: Answer, width: Tensor) -> Tensor:
        """The gradient of the loss with respect to the change, its largest entry one."""
        is_short = like(answer.losses <= 0, change)  # a point that fools needs no more margin
        size = change.square()
        count = 2 * self.sigma * change / (size + self.sigma).square() / change[0].numel()
        slope = count - torch.where(is_short, width * answer.gradients, 0.0)
        return slope / like(slope.abs().flatten(1).amax(1).clamp_min(TINY), slope)


def _adam(state: SigmaZeroState, slope: Tensor) -> tuple[SigmaZeroState, Tensor]:
    """The moments one step further, every row with its own clock, and the direction they give."""
    step = state.step + 1
    mean = torch.lerp(slope, state.mean, BETAS[0])
    square = torch.lerp(slope.square(), state.square, BETAS[1])
    clock = step.to(slope.dtype)
    root = (square / like(1 - BETAS[1] ** clock, square)).sqrt() + ADAM_EPS
    direction = mean / like(1 - BETAS[0] ** clock, mean) / root
    return replace(state, mean=mean, square=square, step=step), direction
