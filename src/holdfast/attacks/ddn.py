"""Decoupled Direction and Norm (Rony et al., 2019, arXiv:1811.09600).

The change keeps a length of its own, which shrinks while the point fools and grows while it does
not; its direction follows the gradient of the cross-entropy.

Differences from the paper: no rounding to 256 levels on the way (the judge does that where asked
for); lengths are measured in widths of the domain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import clipped, cosine, ends_of, width_of
from holdfast.attacks._hyperplane import length
from holdfast.attacks._losses import cross_entropy
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.engine.random import Rng
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

LAST_RATE = 0.01  # of the step size, against the first one; the authors'


@dataclass(frozen=True, slots=True)
class DDNState:
    """The change of every row, and the length it is held at."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    delta: Tensor
    size: Tensor
    step: Tensor
    rng: Rng
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class DDN(Attack):
    """The smallest Euclidean change: its direction by gradients, its length by success.

    Attributes:
        steps: Gradient steps.
        initial_size: Of the change, in widths of the domain.
        gamma: Share by which the length grows or shrinks at each step.
    """

    card: ClassVar[Card] = Card(
        name="ddn",
        title="the smallest Euclidean change: direction by gradients, length by success",
        paper=(
            "Rony et al. (2019), Decoupling Direction and Norm for Efficient Gradient-Based L2 "
            "Adversarial Attacks and Defenses, arXiv:1811.09600"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l2"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 100
    initial_size: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("ddn", steps=(self.steps, 1), gamma=(self.gamma, 0))
        require_at_least("ddn", initial_size=(self.initial_size, torch.finfo(torch.float32).tiny))

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.steps

    def init(self, problem: Problem) -> DDNState:
        """Start at x."""
        zero = torch.zeros_like(problem.y)
        size = self.initial_size * width_of(problem.allowed).to(problem.x.dtype)
        return DDNState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            delta=torch.zeros_like(problem.x),
            size=size.expand(len(zero)).clone(),
            step=zero,
            rng=problem.rng,
            finished=zero > 0,
        )

    def ask(self, state: DDNState) -> Query:
        """The cross-entropy and its gradient."""
        x = clipped(state.allowed.x + state.delta, state.allowed)
        return Query(x, Objective(cross_entropy, (state.y, state.target)))

    def tell(self, state: DDNState, answer: Answer) -> DDNState:
        """Turn the change along the gradient, and give it its new length."""
        won = fools(answer.logits, state.y, state.goal)
        rate = cosine(state.step, self.steps, 1.0, LAST_RATE) * width_of(state.allowed)
        delta = state.delta + like(rate.to(state.delta.dtype), state.delta) * _unit(state, answer)
        size = state.size * torch.where(won, 1 - self.gamma, 1 + self.gamma)
        size = size.minimum(_farthest(state.allowed))
        scale = size / length(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)
        point = clipped(state.allowed.x + like(scale, delta) * delta, state.allowed)
        step = state.step + 1
        return replace(
            state,
            delta=point - state.allowed.x,
            size=size,
            step=step,
            finished=step >= self.steps,
        )


def _unit(state: DDNState, answer: Answer) -> Tensor:
    """The gradient's direction; a random one where it vanishes."""
    g = answer.gradients
    size = length(g, "l2")
    noise = state.rng.fold(state.step).normal(tuple(g.shape[1:]), g.dtype)
    g = torch.where(like(size > 0, g), g, noise)
    g = g / like(g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny), g)
    return g / like(length(g, "l2"), g)


def _farthest(allowed: AllowedSet) -> Tensor:
    """The distance to the farthest corner of the domain ``(n,)``."""
    lower, upper = ends_of(allowed)
    return length(torch.maximum(upper - allowed.x, allowed.x - lower), "l2")
