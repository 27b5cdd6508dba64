"""Primal-dual proximal gradient descent in l1 (Matyasko and Chau, 2021, arXiv:2106.01538).

``min ||x' - x||_1`` such that the goal is reached: the price of length is a dual variable, raised
after every point that fools and lowered after any other, while steps of Adam reach the goal and a
proximal step makes the change smaller. It begins with steps as long as signs, dense and far, and
narrows them down to few coordinates, so that it ends near boundaries that gradients at x do not
lead to; but it takes its time, some hundreds of passes.

Differences from the paper: the margin is measured against the clean one and the price against the
largest gradient, so that nothing depends on the scale of logits; the proximal step's inner
iterations are summed up in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import clipped, width_of
from holdfast.attacks._losses import margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

MEAN, SQUARE, TINY = 0.9, 0.999, 1e-8  # Adam's
FIRST_PRICE = 0.01  # of length, against that of missing the goal, as in the paper
SLOWEST = 0.1  # of the price's first rate: the last one
KEPT = 0.9  # of the price when it follows the dual variable by one step
INNER = 5  # iterations of a proximal step
CLEAN = 3.0  # what the clean margin counts in the loss


@dataclass(frozen=True, slots=True)
class PrimalDualState:
    """One row per job.

    Attributes:
        mean, square: Adam's moments of the gradient.
        log_price: The dual variable: logarithm of the price of length.
        price: Its moving average, which is paid.
        unit: What margins are divided by.
    """

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    x: Tensor
    mean: Tensor
    square: Tensor
    log_price: Tensor
    price: Tensor
    unit: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class PrimalDual(Attack):
    """The smallest sum of absolute changes, by proximal steps with a price that adapts.

    Attributes:
        steps: Gradient steps.
        n_targets: 0: one untargeted run. Otherwise runs towards the likeliest wrong classes.
        step_size: The first, in widths of the domain; falls geometrically to a hundredth.
        dual_step: By how much the logarithm of the price changes at first; falls to a tenth.
    """

    card: ClassVar[Card] = Card(
        name="primal_dual",
        title="the smallest sum of absolute changes, by proximal steps at an adaptive price",
        paper=(
            "Matyasko and Chau (2021), PDPGD: Primal-Dual Proximal Gradient Descent Adversarial "
            "Attack, arXiv:2106.01538"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l1"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 500
    n_targets: int = 0
    step_size: float = 0.1
    dual_step: float = 0.1

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("primal_dual", steps=(self.steps, 1), n_targets=(self.n_targets, 0))
        require_at_least("primal_dual", step_size=(self.step_size, tiny))
        require_at_least("primal_dual", dual_step=(self.dual_step, 0))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> PrimalDualState:
        """Start at x, or at the points given."""
        zero = torch.zeros_like(problem.y)
        x = problem.x if problem.start is None else problem.start
        price = torch.full(zero.shape, FIRST_PRICE, dtype=x.dtype, device=x.device)
        clean = margin(problem.logits, problem.y, problem.target).abs()
        return PrimalDualState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            x=x.clone(),
            mean=torch.zeros_like(x),
            square=torch.zeros_like(x),
            log_price=torch.full_like(price, math.log(FIRST_PRICE)),
            price=price,
            unit=(clean / CLEAN).clamp_min(torch.finfo(clean.dtype).tiny),
            step=zero,
            finished=zero > 0,
        )

    def ask(self, state: PrimalDualState) -> Query:
        """A soft loss of the margin, and its gradient."""
        return Query(state.x, Objective(_soft_margin, (state.y, state.target, state.unit)))

    def tell(self, state: PrimalDualState, answer: Answer) -> PrimalDualState:
        """A step of Adam, one towards x that costs the price, and the next price."""
        width = width_of(state.allowed).to(state.x.dtype)
        gradient = answer.gradients * width
        mean = torch.lerp(gradient, state.mean, MEAN)
        square = torch.lerp(gradient.square(), state.square, SQUARE)
        step = state.step + 1
        done = step.to(mean.dtype)
        spread = (square / like(1 - SQUARE**done, square)).sqrt() + TINY
        part = (done - 1) / self.steps
        size = self.step_size * 0.01**part
        climb = like(size / (1 - MEAN**done), mean) * mean / spread
        moved = (clipped(state.x + width * climb, state.allowed) - state.allowed.x) / width
        change = _shrunk(moved, spread, state.price * size)
        won = fools(answer.logits, state.y, state.goal)
        rate = self.dual_step * (1 - (1 - SLOWEST) * part)
        log_price = state.log_price + torch.where(won, rate, -rate)
        return replace(
            state,
            x=clipped(state.allowed.x + width * change, state.allowed),
            mean=mean,
            square=square,
            log_price=log_price,
            price=torch.lerp(log_price.exp(), state.price, KEPT),
            step=step,
            finished=step >= self.steps,
        )


def _soft_margin(logits: Tensor, y: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    """Rises with the margin, ever more slowly once it is positive ``(n,)``."""
    return -F.softplus(-margin(logits, y, target) / unit)


def _shrunk(change: Tensor, spread: Tensor, price: Tensor) -> Tensor:
    """The proximal step in the metric ``spread``, after :data:`INNER` iterations from ``change``.

    Each iteration leaves ``1 - h`` of the way to ``price / h`` (h: the metric against its largest
    entry), so that coordinates of small gradients lose more, but not without bound.
    """
    h = spread / like(spread.flatten(1).amax(1), spread)
    cut = like(price, change) * (1 - (1 - h).clamp_min(0.0) ** INNER) / h
    return change.sign() * (change.abs() - cut).clamp_min(0.0)
