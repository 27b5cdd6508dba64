"""Gradients at noisy points, with noise and steps that shrink together: graduated optimisation.

Where a surface is rough (fast waves, units that switch) or the model answers at random, one
gradient says little of the slope at the attacker's scale. Averages over many gradients per step do
(``holdfast.trust.routes.neighbours``), but most of them are paid for at points that the next
step leaves. Here every step pays for one gradient, at a noisy copy of the iterate, and many small
steps do the averaging. As the noise shrinks, the search passes from the smoothed surface to the
surface itself, where it climbs what is left of the roughness. Smooth stand-ins for hard steps
(``holdfast.trust.routes.straight_through``) grow narrower along with it.

Differences from the paper: projected steps in the set's own geometry with a little momentum in
place of plain stochastic gradients, and one geometric schedule in place of epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import loss_named
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

_FIRST_STEP, _LAST_STEP = 0.25, 0.01  # in radii
_LAST_NOISE = 0.002  # of the first
_STILL = 0.2  # share of the steps, at the end, without noise


@dataclass(frozen=True, slots=True)
class AnnealedState:
    """The iterate of each row, and the gradients that it remembers."""

    x: Tensor
    velocity: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    rng: Rng
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class Annealed(Attack):
    """From the smoothed surface to the surface itself, one gradient per step.

    Attributes:
        steps: Steps per restart; noise and steps shrink over them.
        noise: At the start, as a share of the difference of two random allowed inputs.
        momentum: Decay of remembered gradients.
        loss: ``ce``, ``margin`` or ``dlr``.
        restarts: Independent random starts; the next runs only where the last one failed.
        n_targets: 0, or targeted runs at the likeliest wrong classes.
    """

    card: ClassVar[Card] = Card(
        name="annealed",
        title="gradient steps at noisy points, for rough surfaces and models that answer at random",
        paper="Hazan, Levy and Shalev-Shwartz (2016), On graduated optimization for stochastic "
        "non-convex problems, arXiv:1503.03712",
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2", "l1"}),
    )

    steps: int = 300
    noise: float = 0.5
    momentum: float = 0.75
    loss: str = "margin"
    restarts: int = 1
    n_targets: int = 0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        loss_named(self.loss)
        require_at_least("annealed", steps=(self.steps, 1), restarts=(self.restarts, 1))
        require_at_least("annealed", noise=(self.noise, 0), n_targets=(self.n_targets, 0))
        if not 0 <= self.momentum < 1:
            raise PlanError(
                f"annealed: momentum is {self.momentum}; it must be at least 0 and below 1."
            )

    @property
    def max_queries(self) -> int:
        """The start and one point per step."""
        return self.steps + 1

    def init(self, problem: Problem) -> AnnealedState:
        """A random start."""
        x, zero = problem.allowed.sample(problem.rng), torch.zeros_like(problem.y)
        return AnnealedState(
            x=x,
            velocity=torch.zeros_like(x),
            y=problem.y,
            target=problem.target,
            allowed=problem.allowed,
            rng=problem.rng,
            step=zero,
            finished=zero > 0,
        )

    def ask(self, state: AnnealedState) -> Query:
        """Loss and gradient at a noisy copy of the iterate."""
        allowed, rng = state.allowed, state.rng.fold(state.step + 1)
        difference = allowed.sample(rng.fold(0)) - allowed.sample(rng.fold(1))
        points = allowed.project(state.x + like(self._noise(state), state.x) * difference)
        objective = Objective(loss_named(self.loss), (state.y, state.target))
        return Query(points, objective, progress=self._progress(state))

    def tell(self, state: AnnealedState, answer: Answer) -> AnnealedState:
        """One projected step; every gradient weighs the same, whatever its size."""
        gradient = answer.gradients
        size = gradient.flatten(1).abs().mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        velocity = self.momentum * state.velocity + gradient / like(size, gradient)
        share = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** self._progress(state)
        length = like(share * state.allowed.radius, state.x)
        x = state.x + length * state.allowed.direction(velocity, state.x)
        step = state.step + 1
        return replace(
            state,
            x=state.allowed.project(x),
            velocity=velocity,
            step=step,
            finished=step > self.steps,
        )

    def _progress(self, state: AnnealedState) -> Tensor:
        """Share of the steps that are done ``(n,)``."""
        return state.step.to(state.allowed.radius.dtype) / self.steps

    def _noise(self, state: AnnealedState) -> Tensor:
        """Share of a difference of random inputs ``(n,)``; zero in the last steps."""
        done = self._progress(state) / (1 - _STILL)
        return torch.where(done < 1, self.noise * _LAST_NOISE**done, 0.0)
