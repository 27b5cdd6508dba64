"""Attacks with one thing wrong each: what the contracts must not let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks._domain import clipped
from holdfast.attacks.base import Objective, Query
from holdfast.attacks.carlini_wagner import CarliniWagner
from holdfast.attacks.fab import FAB
from holdfast.attacks.fmn import FMN
from holdfast.attacks.pgd import PGD
from holdfast.attacks.square import Square
from holdfast.engine.random import Rng
from holdfast.perturbations.ball import Ball
from holdfast.perturbations.l2 import L2Ball
from holdfast.rows import copied, static_field, take
from holdfast.threat import Access, Domain


@dataclass(frozen=True)
class Sound:
    """PGD, unharmed: the defects below change one thing in it."""

    card: ClassVar[Any] = replace(PGD.card, name="planted")
    steps: int = 20

    @property
    def max_queries(self) -> int:
        return self.steps + 1

    @property
    def inner(self) -> Any:
        return PGD(steps=self.steps)

    def init(self, problem):
        return self.inner.init(problem)

    def ask(self, state):
        return self.inner.ask(state)

    def tell(self, state, answer):
        return self.inner.tell(state, answer)

    option, options, __call__ = PGD.option, PGD.options, PGD.__call__
    phase, stays_inside = PGD.phase, PGD.stays_inside
    ahead, looks_ahead = PGD.ahead, PGD.looks_ahead


# ------------------------------------------------------------------ weak


class SignFlipped(Sound):
    def tell(self, state, answer):
        return super().tell(state, replace(answer, gradients=-answer.gradients))


class OneCoordinate(Sound):
    def tell(self, state, answer):
        only = torch.zeros_like(answer.gradients)
        only[:, 0] = answer.gradients[:, 0]
        return self.inner.tell(state, replace(answer, gradients=only))


class TinyStep(Sound):
    @property
    def inner(self):
        return PGD(steps=self.steps, step_size=1e-4)


class HalfTheBall(Sound):
    def init(self, problem):
        allowed = problem.allowed.resized(problem.allowed.radius / 2)
        return super().init(replace(problem, allowed=allowed))


class WrongLabel(Sound):
    def init(self, problem):
        return super().init(replace(problem, y=(problem.y + 1) % problem.logits.shape[1]))


class IgnoresTheTarget(Sound):
    def init(self, problem):
        return super().init(replace(problem, target=torch.full_like(problem.target, -1)))


class StopsAtOnce(Sound):
    def tell(self, state, answer):
        state = super().tell(state, answer)
        return replace(state, finished=torch.ones_like(state.finished))


@dataclass(frozen=True)
class _WithGradients:
    inner: Any
    gradients: Tensor
    finished: Tensor


class StaleGradient(Sound):
    """Steps along the gradient of the point before."""

    def init(self, problem):
        state = super().init(problem)
        return _WithGradients(state, torch.zeros_like(problem.x), state.finished)

    def ask(self, state):
        return super().ask(state.inner)

    def tell(self, state, answer):
        is_first = (state.gradients == 0).flatten(1).all(1)
        mask = is_first.reshape(-1, *(1,) * (answer.gradients.ndim - 1))
        used = torch.where(mask, answer.gradients, state.gradients)
        inner = super().tell(state.inner, replace(answer, gradients=used))
        return _WithGradients(inner, answer.gradients, inner.finished)


# ------------------------------------------------------------------ outside the set


class LeavesTheBall(Sound):
    def ask(self, state):
        query = super().ask(state)
        points = state.allowed.x + 1.01 * (query.points - state.allowed.x)
        return replace(query, points=points.clamp(0, 1))


class LeavesTheBox(Sound):
    def init(self, problem):
        radius = float(problem.allowed.radius[0])
        wide = Ball("linf", radius).bind(problem.x, Domain(-99.0, 99.0))
        return super().init(replace(problem, allowed=wide))


class HardCodedBox(Sound):
    def ask(self, state):
        query = super().ask(state)
        return replace(query, points=query.points.clamp(0, 1))


class MovesWithoutRoom(Sound):
    def ask(self, state):
        query = super().ask(state)
        return replace(query, points=(query.points + 1e-5).clamp(max=1.0))


class FollowsNaN(Sound):
    """Divides by the gradient's length without looking."""

    def tell(self, state, answer):
        length = answer.gradients.flatten(1).norm(dim=1, keepdim=True)
        state = super().tell(state, answer)
        return replace(state, x=state.x + 0.0 / length)


# ------------------------------------------------------------------ not reproducible


class UnseededNoise(Sound):
    def init(self, problem):
        key = torch.randint(0, 2**60, problem.y.shape)
        return super().init(replace(problem, rng=Rng(key)))


class SeedsTorch(Sound):
    def init(self, problem):
        torch.manual_seed(0)
        return super().init(problem)


class SeedsNumpy(Sound):
    def init(self, problem):
        np.random.seed(0)
        return super().init(problem)


class IgnoresTheSeed(Sound):
    def init(self, problem):
        return super().init(replace(problem, rng=Rng.from_seed(0, len(problem.y))))


class SaysDeterministic(Sound):
    card = replace(Sound.card, is_stochastic=False)


class CouplesTheBatch(Sound):
    """Centres the gradients over the batch."""

    def tell(self, state, answer):
        centred = answer.gradients - answer.gradients.mean(0, keepdim=True)
        return super().tell(state, replace(answer, gradients=centred))


class NoiseByPlace(Sound):
    """Random numbers hang on a row's place in the batch."""

    def init(self, problem):
        return super().init(replace(problem, rng=Rng.from_seed(0, len(problem.y))))


class RemembersInItself(Sound):
    """Sees every other question wrong, counted over all calls."""

    counter: ClassVar[list[int]] = [0]

    def ask(self, state):
        self.counter[0] += 1
        query = super().ask(state)
        return replace(query, points=state.allowed.x) if self.counter[0] % 8 == 0 else query


@dataclass(frozen=True)
class _Clocked:
    inner: Any
    finished: Tensor
    step: int = static_field()


class CommonClock(Sound):
    """One step counter for all rows."""

    def init(self, problem):
        state = super().init(problem)
        return _Clocked(state, state.finished, 0)

    def ask(self, state):
        return super().ask(state.inner)

    def tell(self, state, answer):
        inner, step = super().tell(state.inner, answer), state.step + 1
        over = torch.full_like(inner.finished, step > self.steps)
        return _Clocked(inner, over | inner.finished, step)


@dataclass(frozen=True)
class _Unwritable:
    inner: Any
    finished: Tensor
    function: Callable[..., Any] = field(metadata={"holdfast_static": True})


class KeepsAFunction(Sound):
    """Its state cannot be written to disk."""

    def init(self, problem):
        state = super().init(problem)
        return _Unwritable(state, state.finished, lambda: None)

    def ask(self, state):
        return super().ask(state.inner)

    def tell(self, state, answer):
        inner = super().tell(state.inner, answer)
        return replace(state, inner=inner, finished=inner.finished)


# ------------------------------------------------------------------ bad manners


class WritesIntoX(Sound):
    def init(self, problem):
        problem.x.clamp_(0.01, 0.99)
        return super().init(problem)


class ForgetsItsBudget(Sound):
    def tell(self, state, answer):
        state = super().tell(state, answer)
        return replace(state, finished=torch.zeros_like(state.finished))


class FinishesAsOne(Sound):
    """Says with one number, not row by row, that all is over."""

    def tell(self, state, answer):
        state = super().tell(state, answer)
        return replace(state, finished=state.finished.long())


class AsksInDouble(Sound):
    def ask(self, state):
        query = super().ask(state)
        return replace(query, points=query.points.double())


class NeedsThreeClasses(Sound):
    def ask(self, state):
        y, target = state.y, state.target

        def third(logits, y, target):
            return logits.topk(3).values[:, 2] - logits.gather(1, y[:, None])[:, 0]

        return Query(state.x, Objective(third, (y, target)))


class NeedsImages(Sound):
    def tell(self, state, answer):
        _n, _c, _h, _w = answer.gradients.shape
        return super().tell(state, answer)


class ClaimsScores(Sound):
    card = replace(Sound.card, access=Access.SCORES)


@dataclass(frozen=True)
class TupleOption(Sound):
    """An option that no plan can write down."""

    sizes: Any = (1, 2)


class DoublesItsPasses(Sound):
    """Says that it needs half of what it asks."""

    @property
    def max_queries(self):
        return self.steps // 2


# ------------------------------------------------------------------ smallest changes


@dataclass(frozen=True)
class SoundMinimal(Sound):
    """Carlini-Wagner, unharmed."""

    card: ClassVar[Any] = replace(CarliniWagner.card, name="planted_minimal")
    steps: int = 200

    @property
    def max_queries(self):
        return 9 * self.steps

    @property
    def inner(self):
        return CarliniWagner(steps=self.steps)


class MinimalOneCoordinate(SoundMinimal):
    tell = OneCoordinate.tell


class MinimalWithoutTarget(SoundMinimal):
    def init(self, problem):
        return super().init(replace(problem, target=torch.full_like(problem.target, -1)))


@dataclass(frozen=True)
class SoundDescent(Sound):
    """FMN, unharmed."""

    card: ClassVar[Any] = replace(FMN.card, name="planted_descent")
    steps: int = 200

    @property
    def max_queries(self):
        return self.steps

    @property
    def inner(self):
        return FMN(steps=self.steps)


class ClampsThePoint(SoundDescent):
    """Scales to the radius whatever is inside as well, and clamps the change instead."""

    def tell(self, state, answer):
        state = super().tell(state, answer)
        d = state.x - state.allowed.x
        factor = state.radius / d.norm(dim=1).clamp_min(1e-12)
        z = state.allowed.x + (d * factor[:, None]).clamp(max=1)
        return replace(state, x=clipped(z, state.allowed))


class NormalisesTheBatch(SoundDescent):
    """Divides each gradient by the norm of all."""

    def tell(self, state, answer):
        own, after = answer.gradients.norm(dim=1), super().tell(state, answer)
        share = own / answer.gradients.norm().clamp_min(1e-12)
        return replace(after, x=state.x + share[:, None] * (after.x - state.x))


class CommonRadius(SoundDescent):
    """One radius for the whole batch."""

    def tell(self, state, answer):
        state = super().tell(state, answer)
        common = state.radius.nan_to_num(posinf=1e3).mean()
        return replace(state, radius=common.expand_as(state.radius).clone())


@dataclass(frozen=True)
class SoundProjections(Sound):
    """FAB, unharmed."""

    card: ClassVar[Any] = replace(FAB.card, name="planted_projections")
    steps: int = 50

    @property
    def max_queries(self):
        return 2 * self.steps

    @property
    def inner(self):
        return FAB(steps=self.steps)


class WrongDualNorm(SoundProjections):
    """Measures and projects in l2, whatever the norm."""

    def init(self, problem):
        ball = problem.allowed
        other = L2Ball(ball.x, ball.radius * 99, ball.box_lower, ball.box_upper)
        return super().init(replace(problem, allowed=other))


class ForgetsTheBox(SoundProjections):
    """Projects as if there were no box, and clips what comes out."""

    def init(self, problem):
        ball = problem.allowed
        free = replace(ball, box_lower=ball.box_lower - 99, box_upper=ball.box_upper + 99)
        return super().init(replace(problem, allowed=free))

    def ask(self, state):
        query = super().ask(state)
        ball = state.allowed
        points = query.points.clamp(ball.box_lower + 99, ball.box_upper - 99)
        return replace(query, points=points)


# ------------------------------------------------------------------ short-sighted


class SoundSearch(Sound):
    """Square, unharmed."""

    queries: int = 60

    @property
    def max_queries(self) -> int:
        return self.queries

    @property
    def inner(self) -> Any:
        return Square(queries=self.queries)

    card: ClassVar[Any] = replace(Square.card, name="planted")
    looks_ahead = True

    def ahead(self, state, n):
        return self.inner.ahead(state, n)

    def is_fruitless(self, state, answer):
        return self.inner.is_fruitless(state, answer)


class ForeseesOtherNumbers(SoundSearch):
    def ahead(self, state, n):
        states = super().ahead(state, n)
        return replace(states, rng=states.rng.skip(1))


class ForeseesTheSame(SoundSearch):
    """Copies that do not move on."""

    def ahead(self, state, n):
        return take(state, copied(state.y, n)[0])


class MissesWhatMatters(SoundSearch):
    def is_fruitless(self, state, answer):
        return torch.ones_like(state.finished)


class ForgetsTheEnd(SoundSearch):
    def ahead(self, state, n):
        states = super().ahead(state, n)
        return replace(states, finished=torch.zeros_like(states.finished))


class ValuesEveryAnswer(SoundSearch):
    def is_fruitless(self, state, answer):
        return torch.zeros_like(state.finished)
