"""What checks look at: some samples that no attack has broken yet, and the model near them.

Whatever several checks need is measured once, when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from holdfast.attacks._losses import cross_entropy, goal_margin
from holdfast.attacks.base import Attack, Objective, Problem, Query, Route
from holdfast.attacks.pgd import PGD
from holdfast.engine.cascade import Step
from holdfast.engine.ledger import Standing
from holdfast.engine.random import Rng
from holdfast.errors import ModelCrash
from holdfast.model import Model
from holdfast.rows import like, take
from holdfast.threat import AllowedSet, Threat
from holdfast.trust.softened import Softened

PATH_STEPS = 20


@dataclass(frozen=True, slots=True)
class Path:
    """The way of one attack: margins of the goal after every step ``(steps + 1, m)``."""

    margins: Tensor

    @property
    def best(self) -> Tensor:
        """Largest margin of each sample ``(m,)``; positive: fooled."""
        return self.margins.amax(0)


@dataclass(frozen=True, slots=True)
class Trace:
    """What happens inside one forward pass.

    Attributes:
        operators: Steps without useful gradients, as :class:`Softened` names them.
        n_calls: Torch functions called, for each of two inputs.
        n_inner_gradients: Gradients that the model itself took.
    """

    operators: tuple[str, ...]
    n_calls: tuple[int, int]
    n_inner_gradients: int


@dataclass
class Probe:
    """Some unbroken samples under one threat.

    Attributes:
        model: Inside a session.
        x, y, goal: Inputs ``(m, *shape)``, labels, and wanted classes or -1.
        allowed: Their allowed changes.
        rng: Their random numbers.
        logits: The clean answers.
        standing: Where all samples stand.
        steps: The stages run so far.
        threat: What is allowed.
        n_correct: Samples that the model gets right.
    """

    model: Model
    x: Tensor
    y: Tensor
    goal: Tensor
    allowed: AllowedSet
    rng: Rng
    logits: Tensor
    standing: Standing
    steps: Sequence[Step]
    threat: Threat
    n_correct: int

    def __len__(self) -> int:
        return len(self.y)

    # ------------------------------------------------------------------ margins and gradients

    @property
    def margins(self) -> Tensor:
        """Of the clean inputs ``(m,)``."""
        return goal_margin(self.logits, self.y, self.goal)

    def margins_at(self, points: Tensor) -> Tensor:
        """How far the goal is reached ``(m,)``."""
        return goal_margin(self.model.logits(points), self.y, self.goal)

    def gradients_at(self, points: Tensor, route: Route | None = None) -> Tensor:
        """Gradients of the margin ``(m, *shape)``; zero where they are not finite."""
        objective = Objective(goal_margin, (self.y, self.goal))
        found = self.model.answer([Query(points, objective, route)])[0].gradients
        return found.nan_to_num(0.0, 0.0, 0.0)

    @cached_property
    def gradients(self) -> Tensor:
        """Gradients of the margin at the clean inputs."""
        return self.gradients_at(self.x)

    @cached_property
    def loss_gradients(self) -> Tensor:
        """Gradients of the cross-entropy at the clean inputs."""
        objective = Objective(cross_entropy, (self.y, self.goal))
        return self.model.answer([Query(self.x, objective)])[0].gradients.nan_to_num(0.0, 0.0, 0.0)

    def near(self, share: float, number: int = 0) -> Tensor:
        """Random allowed inputs within ``share`` of the radius."""
        return self._smaller(share).sample(self.rng.fold(1000 + number))

    def stepped(self, direction: Tensor, share: float) -> Tensor:
        """The inputs after one step of ``share`` of the radius along a gradient's direction."""
        size = like(share * self.allowed.radius, self.x)
        return self._smaller(share).project(self.x + size * self.allowed.direction(direction))

    def random_direction(self, number: int) -> Tensor:
        """Normal noise shaped like the inputs."""
        return self.rng.fold(2000 + number).normal(tuple(self.x.shape[1:])).to(self.x.dtype)

    def _smaller(self, share: float) -> AllowedSet:
        radius = share * self.allowed.radius
        return self.allowed.resized(radius.clamp_min(1.0) if self.is_counting else radius)

    @property
    def is_counting(self) -> bool:
        """Whether the radius counts coordinates (l0)."""
        return getattr(self.allowed, "geometry", "") == "l0"

    # ------------------------------------------------------------------ short attacks

    @cached_property
    def path(self) -> Path:
        """A short attack along the model's own gradients."""
        return self.attacked(PGD(steps=PATH_STEPS, loss="margin"))

    def attacked(
        self, attack: Attack, route: Route | None = None, radius: Tensor | None = None
    ) -> Path:
        """Run ``attack`` to its end, without judging."""
        allowed = self.allowed if radius is None else self.allowed.resized(radius)
        problem = Problem(
            self.x, self.y, self.goal, allowed, self.rng.fold(3), self.logits, self.goal
        )
        state, margins = attack.init(problem), []
        for _ in range(attack.max_queries):
            query = replace(attack.ask(state), route=route)
            answer = self.model.answer([query])[0]
            margins.append(goal_margin(answer.logits, self.y, self.goal))
            gradients = answer.gradients.nan_to_num(0.0, 0.0, 0.0)
            state = attack.tell(state, replace(answer, gradients=gradients))
            if bool(state.finished.all()):
                break
        return Path(torch.stack(margins))

    def few(self, n: int) -> Probe:
        """The first ``n`` of the samples."""
        if len(self) <= n:
            return self
        rows = torch.arange(n, device=self.y.device)
        return Probe(
            self.model,
            self.x[rows],
            self.y[rows],
            self.goal[rows],
            take(self.allowed, rows),
            take(self.rng, rows),
            self.logits[rows],
            self.standing,
            self.steps,
            self.threat,
            self.n_correct,
        )

    # ------------------------------------------------------------------ the model's inside

    @cached_property
    def trace(self) -> Trace:
        """What a forward pass consists of, from two of them."""
        first, second = (self._watched(points) for points in (self.x[:4], self.near(1.0)[:4]))
        met = {**first.met, **second.met}
        operators = tuple(name for name, count in met.items() if count > 0)
        inner = max(first.n_inner_gradients, second.n_inner_gradients)
        return Trace(operators, (first.n_calls, second.n_calls), inner)

    def _watched(self, points: Tensor) -> Softened:
        mode = Softened()
        self.model.passes.forward += len(points)
        try:
            with torch.enable_grad(), mode:
                x = points.detach().clone().requires_grad_(True)
                self.model.raw(x)
        except ModelCrash:
            raise
        except Exception:
            # the model cannot run with other gradients: nothing is known of its inside
            return Softened()
        return mode
