"""Elastic-net attack (Chen et al., 2018, arXiv:1709.04114), with the l1 decision rule.

``min c max(-m(x'), -confidence) + ||x' - x||_2^2 + beta ||x' - x||_1`` inside the domain, with the
margin m of the goal, by FISTA; c is the smallest one that succeeds, by bisection.

Differences from the paper and its code: changes are measured in widths of the domain; each row has
its own c, and a search that no longer moves ends; a step asks about FISTA's extrapolated point
alone (theirs runs the network at the shrunk point as well, only to judge it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import goal_of
from holdfast.attacks._domain import clipped, width_of
from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks._weight_search import WeightSearch
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like, where
from holdfast.threat import Access, AllowedSet


@dataclass(frozen=True, slots=True)
class EADState:
    """FISTA's two points of every row, and the search for the weight ``c``."""

    allowed: AllowedSet
    y: Tensor
    goal: Tensor
    x: Tensor
    ahead: Tensor
    step: Tensor
    weight: WeightSearch
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class EAD(Attack):
    """The smallest sum of absolute changes, by shrinkage and gradient steps.

    Attributes:
        steps: Steps per search.
        searches: Values of c tried one after the other.
        step_size: The first; falls with the square root of the steps left.
        beta: How far a step shrinks every change, in widths of the domain.
        initial_c: The first c.
        confidence: Margin to reach; 0: any success.
    """

    card: ClassVar[Card] = Card(
        name="ead",
        title="the smallest sum of absolute changes, by shrinkage and gradient steps",
        paper=(
            "Chen et al. (2018), EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial "
            "Examples, arXiv:1709.04114"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l1"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 200
    searches: int = 9
    step_size: float = 1e-2
    beta: float = 1e-2
    initial_c: float = 1e-3
    confidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("ead", steps=(self.steps, 1), searches=(self.searches, 1))
        require_at_least("ead", step_size=(self.step_size, tiny), initial_c=(self.initial_c, tiny))
        require_at_least("ead", beta=(self.beta, 0), confidence=(self.confidence, 0))

    @property
    def max_queries(self) -> int:
        """One point per step of every search."""
        return self.steps * self.searches

    def init(self, problem: Problem) -> EADState:
        """Start every search at x."""
        zero = torch.zeros_like(problem.y)
        c = torch.full(zero.shape, self.initial_c, dtype=problem.x.dtype, device=zero.device)
        return EADState(
            allowed=problem.allowed,
            y=problem.y,
            goal=goal_of(problem),
            x=problem.x.clone(),
            ahead=problem.x.clone(),
            step=zero,
            weight=WeightSearch.starting(c),
            finished=zero > 0,
        )

    def ask(self, state: EADState) -> Query:
        """The goal's margin and its gradient."""
        return Query(state.ahead, Objective(goal_margin, (state.y, state.goal)))

    def tell(self, state: EADState, answer: Answer) -> EADState:
        """One step of FISTA; rows whose search is over begin the next one."""
        margin = answer.losses
        won = (margin > 0) & (margin >= self.confidence)
        x, ahead = self._step(state, answer)
        stays = ((x == state.x) & (ahead == state.ahead)).flatten(1).all(1)
        step = state.step + 1
        state = replace(state, x=x, ahead=ahead, step=step, weight=state.weight.noted(won))
        is_over = stays | (step >= self.steps)
        return where(is_over, self._next_search(state), state) if bool(is_over.any()) else state

    def _step(self, state: EADState, answer: Answer) -> tuple[Tensor, Tensor]:
        """The shrunk point, and the one extrapolated from it."""
        x0, width = state.allowed.x, width_of(state.allowed).to(state.x.dtype)
        pull = torch.where(answer.losses < self.confidence, state.weight.c, 0.0).to(state.x.dtype)
        change = (state.ahead - x0) / width
        slope = 2 * change - like(pull, change) * width * answer.gradients
        left = 1 - state.step.to(change.dtype) / self.steps
        z = change - like(self.step_size * left.sqrt(), change) * slope
        shrunk = z.sign() * (z.abs() - self.beta).clamp_min(0.0)
        x = clipped(x0 + width * shrunk, state.allowed)
        momentum = state.step.to(change.dtype) / (state.step + 3)
        return x, clipped(x + like(momentum, x) * (x - state.x), state.allowed)

    def _next_search(self, state: EADState) -> EADState:
        """Start again at x with the next c."""
        weight = state.weight.next()
        return replace(
            state,
            x=state.allowed.x,
            ahead=state.allowed.x,
            step=torch.zeros_like(state.step),
            weight=weight,
            finished=weight.number >= self.searches,
        )
