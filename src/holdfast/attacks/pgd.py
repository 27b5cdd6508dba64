"""Projected gradient descent (Madry et al., 2018, arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import loss_named
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet


@dataclass(frozen=True, slots=True)
class PGDState:
    """The iterate of each row and, with momentum, the gradients it remembers."""

    x: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    step_size: Tensor
    velocity: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class PGD(Attack):
    """``x <- P(x + step_size d)`` with the steepest direction d of the set's own geometry.

    Unlike most implementations it is judged at every iterate, not at the last one alone.

    Attributes:
        steps: Steps per restart.
        step_size: In units of the threat; None: a size that crosses the set (2.5 eps / steps).
        random_start: Start at a random allowed input, not at x.
        restarts: Independent starts; the next runs only where the last one failed.
        momentum: Decay of remembered gradients (Dong et al., 2018, arXiv:1710.06081); 0: none.
        loss: ``ce``, ``margin`` or ``dlr``.
        n_targets: 0, or targeted runs at the likeliest wrong classes.
    """

    card: ClassVar[Card] = Card(
        name="pgd",
        title="repeated gradient steps, each brought back into the allowed set",
        paper="Madry, Makelov, Schmidt, Tsipras and Vladu (2018), Towards Deep Learning Models "
        "Resistant to Adversarial Attacks, arXiv:1706.06083",
        access=Access.GRADIENTS,
    )

    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    momentum: float = 0.0
    loss: str = "ce"
    n_targets: int = 0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        loss_named(self.loss)
        require_at_least("pgd", steps=(self.steps, 1), restarts=(self.restarts, 1))
        require_at_least("pgd", momentum=(self.momentum, 0), n_targets=(self.n_targets, 0))

    @property
    def max_queries(self) -> int:
        """The start and one point per step."""
        return self.steps + 1

    def init(self, problem: Problem) -> PGDState:
        """Random or clean start."""
        allowed = problem.allowed
        x = allowed.sample(problem.rng) if self.random_start else problem.x.clone()
        step_size = allowed.natural_step(self.steps)
        if self.step_size is not None:
            step_size = torch.full_like(step_size, self.step_size)
        velocity = torch.zeros_like(x) if self.momentum > 0 else x.new_zeros(len(x))
        zero = torch.zeros_like(problem.y)
        return PGDState(x, problem.y, problem.target, allowed, step_size, velocity, zero, zero > 0)

    def ask(self, state: PGDState) -> Query:
        """Loss and gradient at the iterate."""
        return Query(state.x, Objective(loss_named(self.loss), (state.y, state.target)))

    def tell(self, state: PGDState, answer: Answer) -> PGDState:
        """One projected step."""
        gradient, velocity = answer.gradients, state.velocity
        if self.momentum > 0:
            size = gradient.flatten(1).abs().mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = velocity = self.momentum * velocity + gradient / like(size, gradient)
        direction = state.allowed.direction(gradient, state.x)
        x = state.allowed.project(state.x + like(state.step_size, direction) * direction)
        step = state.step + 1
        return replace(state, x=x, velocity=velocity, step=step, finished=step > self.steps)
