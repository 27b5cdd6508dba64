"""Auto-PGD (Croce and Hein, 2020, arXiv:2003.01690; in l1: 2021, arXiv:2103.01208).

Differences from the authors' code: the window of the first checkpoint compares with the loss of the
start (theirs with zero, which counts one increase too many), rows stop the moment they fool the
model, and the losses are defined for any number of classes. In l1, coordinates that the box holds
are left out of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import loss_named
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

_FIRST_WINDOW, _SHRINK, _SHORTEST = 0.22, 0.03, 0.06  # of all steps; section 3 of the paper
_L1_WINDOW = 0.04
_L1_SHARE, _L1_SPREAD = 0.2, 1.5  # coordinates of a step: at first, and against those changed
_L1_REDUCE, _L1_SMALLEST = 1.5, 10.0
_WIDER = (3.0, 2.0, 1.0)  # radii of the l1 warm-up, and the first two shares of its steps
_WIDER_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class APGDState:
    """One row per run. Losses are to be maximised."""

    x: Tensor
    x_before: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss: Tensor
    loss_best: Tensor
    loss_best_at_check: Tensor
    n_increases: Tensor
    was_reduced: Tensor
    step_size: Tensor
    share: Tensor
    n_changed: Tensor
    level: Tensor
    step: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class APGD(Attack):
    """PGD with momentum that halves its own step size and goes back to its best point.

    Attributes:
        steps: Steps per restart; the whole schedule scales with them.
        loss: ``ce``, ``margin`` or ``dlr``.
        restarts: Independent random starts; the next runs only where the last one failed.
        n_targets: 0: one untargeted run. Otherwise targeted runs at the likeliest wrong classes,
            likeliest first (APGD-T with ``loss="dlr", n_targets=9``).
        rho: Share of steps in a window that must raise the loss, or the step size is halved.
        momentum: Weight of the new step against the last one.
        widening: In l1, 30 % of the steps in a ball of three times the radius, 30 % in one of
            twice, the rest in the allowed one, each from the last one's best point.
    """

    card: ClassVar[Card] = Card(
        name="apgd",
        title="gradient steps with momentum that choose their own step size",
        paper="Croce and Hein (2020), Reliable evaluation of adversarial robustness with an "
        "ensemble of diverse parameter-free attacks, arXiv:2003.01690",
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2", "l1"}),
    )

    steps: int = 100
    loss: str = "ce"
    restarts: int = 1
    n_targets: int = 0
    rho: float = 0.75
    momentum: float = 0.75
    widening: bool = False

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        loss_named(self.loss)
        require_at_least("apgd", steps=(self.steps, 1), restarts=(self.restarts, 1))
        require_at_least("apgd", n_targets=(self.n_targets, 0), rho=(self.rho, 0))

    @property
    def max_queries(self) -> int:
        """The start and one point per step; with ``widening``, a start in each ball."""
        return self.steps + (len(_WIDER) if self.widening else 1)

    @property
    def stays_inside(self) -> bool:
        """Larger balls are not allowed."""
        return not self.widening

    def init(self, problem: Problem) -> APGDState:
        """A random start; everything else is filled in by the first answer."""
        is_l1 = _is_l1(problem.allowed)
        n_levels = len(_WIDER) if self.widening and is_l1 else 1
        level = torch.full_like(problem.y, len(_WIDER) - n_levels)
        allowed, n = _widened(problem.allowed, level), len(problem.x)
        x = allowed.sample(problem.rng)
        low = torch.full((n,), -torch.inf, device=x.device, dtype=torch.float32)
        zero = torch.zeros_like(problem.y)
        factor = 1.0 if is_l1 else 2.0
        return APGDState(
            x=x,
            x_before=x.clone(),
            x_best=x.clone(),
            gradient_best=torch.zeros_like(x),
            loss=low,
            loss_best=low.clone(),
            loss_best_at_check=low.clone(),
            n_increases=zero,
            was_reduced=zero == 0,
            step_size=factor * allowed.radius,
            share=torch.full_like(low, _L1_SHARE),
            n_changed=torch.full_like(low, float(x[0].numel())),
            level=level,
            step=zero.clone(),
            y=problem.y,
            target=problem.target,
            allowed=problem.allowed,
            finished=zero > 0,
        )

    def ask(self, state: APGDState) -> Query:
        """Loss and gradient at the iterate."""
        return Query(state.x, Objective(loss_named(self.loss), (state.y, state.target)))

    def tell(self, state: APGDState, answer: Answer) -> APGDState:
        """Remember the best point, adapt the step size, take a step."""
        state = _remember(state, answer)
        is_l1 = _is_l1(state.allowed)
        lengths = torch.tensor(level_steps(self.steps, self.widening), device=state.step.device)
        state, to_best = _adapt_l1(state, lengths) if is_l1 else _adapt(state, self.steps, self.rho)
        mask = like(to_best, state.x)
        x = torch.where(mask, state.x_best, state.x)
        gradient = torch.where(mask, state.gradient_best, answer.gradients)
        x_next = _step_l1(state, x, gradient) if is_l1 else _step(state, x, gradient, self.momentum)
        step = state.step + 1
        # the next difference is taken from where this step started, before any return to the best
        state = replace(state, x=x_next, x_before=x, step=step, finished=step > self.steps)
        return _next_level(state, lengths) if is_l1 and self.widening else state


def _is_l1(allowed: AllowedSet) -> bool:
    return getattr(allowed, "geometry", "") == "l1"


@cache
def level_steps(steps: int, widening: bool) -> tuple[int, ...]:
    """Steps in the ball of each level of the l1 warm-up; without it, all in the last."""
    if not widening:
        return (0, 0, steps)
    first = math.ceil(_WIDER_SHARE * steps)
    return first, first, max(steps - 2 * first, 0)


def _widened(allowed: AllowedSet, level: Tensor) -> AllowedSet:
    """The ball of each row's level."""
    wider = torch.tensor(_WIDER, dtype=allowed.radius.dtype, device=level.device)[level]
    return allowed.resized(wider * allowed.radius)


def _next_level(state: APGDState, lengths: Tensor) -> APGDState:
    """Rows whose steps in a ball are over go on in the next one, from their best point."""
    last = len(_WIDER) - 1
    over = state.step > lengths[state.level]
    moves = over & (state.level < last)
    level = torch.where(moves, state.level + 1, state.level)
    ball = _widened(state.allowed, level)
    mask = like(moves, state.x)
    x = torch.where(mask, ball.project(state.x_best), state.x)
    n_changed = (x != state.allowed.x).flatten(1).sum(1).float()
    share = n_changed / (_L1_SPREAD * state.x[0].numel())
    return replace(
        state,
        x=x,
        x_before=torch.where(mask, x, state.x_before),
        loss_best=torch.where(moves, -torch.inf, state.loss_best),
        step_size=torch.where(moves, ball.radius, state.step_size),
        share=torch.where(moves, share, state.share),
        n_changed=torch.where(moves, n_changed, state.n_changed),
        level=level,
        step=torch.where(moves, 0, state.step),
        finished=over & ~moves,
    )


@cache
def windows(steps: int) -> tuple[int, ...]:
    """The length of the window that ends at each step, 0 where none does: index 0 to steps."""
    length, shortest = max(int(_FIRST_WINDOW * steps), 1), max(int(_SHORTEST * steps), 1)
    shrink = max(int(_SHRINK * steps), 1)
    ends, at = [0] * (steps + 1), length
    while at <= steps:
        ends[at] = length
        length = max(length - shrink, shortest)
        at += length
    return tuple(ends)


def _remember(state: APGDState, answer: Answer) -> APGDState:
    """The best point so far, and whether the loss rose."""
    loss = answer.losses.float()
    is_better = loss > state.loss_best
    mask = like(is_better, state.x)
    return replace(
        state,
        x_best=torch.where(mask, state.x, state.x_best),
        gradient_best=torch.where(mask, answer.gradients, state.gradient_best),
        loss_best=torch.where(is_better, loss, state.loss_best),
        n_increases=state.n_increases + ((loss > state.loss) & (state.step > 0)),
        loss_best_at_check=torch.where(state.step > 0, state.loss_best_at_check, loss),
        loss=loss,
    )


def _adapt(state: APGDState, steps: int, rho: float) -> tuple[APGDState, Tensor]:
    """At the end of a window: halve the step size where the window brought too little."""
    table = torch.tensor(windows(steps), device=state.step.device)
    window = table[state.step.clamp_max(steps)]
    is_end = window > 0
    too_few = state.n_increases <= rho * window
    no_gain = ~state.was_reduced & (state.loss_best_at_check >= state.loss_best)
    reduce = is_end & (too_few | no_gain)
    return replace(
        state,
        step_size=torch.where(reduce, state.step_size / 2, state.step_size),
        was_reduced=torch.where(is_end, reduce, state.was_reduced),
        loss_best_at_check=torch.where(is_end, state.loss_best, state.loss_best_at_check),
        n_increases=torch.where(is_end, 0, state.n_increases),
    ), reduce


def _step(state: APGDState, x: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """``z = P(x + eta d)``, then ``P(x + a (z - x) + (1 - a) (x - x_before))``."""
    allowed = state.allowed
    direction = allowed.direction(gradient)
    z = allowed.project(x + like(state.step_size, x) * direction)
    a = like(torch.where(state.step > 0, momentum, 1.0).to(x.dtype), x)
    return allowed.project(x + a * (z - x) + (1 - a) * (x - state.x_before))


def _adapt_l1(state: APGDState, lengths: Tensor) -> tuple[APGDState, Tensor]:
    """Every few steps: spread the step over as many coordinates as the best point changed."""
    window = (_L1_WINDOW * lengths[state.level]).long().clamp_min(1)
    is_end = (state.step > 0) & (state.step % window == 0)
    n_changed = (state.x_best != state.allowed.x).flatten(1).sum(1).float()
    got_sparser = n_changed < 0.95 * state.n_changed
    radius = _widened(state.allowed, state.level).radius
    reduced = (state.step_size / _L1_REDUCE).clamp_min(0).maximum(radius / _L1_SMALLEST)
    step_size = torch.where(got_sparser, radius, reduced)
    share = n_changed / (_L1_SPREAD * state.x[0].numel())
    return replace(
        state,
        step_size=torch.where(is_end, step_size, state.step_size),
        share=torch.where(is_end, share, state.share),
        n_changed=torch.where(is_end, n_changed, state.n_changed),
    ), is_end & got_sparser


def _step_l1(state: APGDState, x: Tensor, gradient: Tensor) -> Tensor:
    """A step on the largest entries of the gradient, equally long in each."""
    allowed = _widened(state.allowed, state.level)
    lower, upper = allowed.hull()
    held = ((gradient > 0) & (x >= upper)) | ((gradient < 0) & (x <= lower))
    g = torch.where(held, 0.0, gradient).flatten(1)
    m = g.shape[1]
    n_moved = (state.share * m).long().clamp(1, m)
    level = g.abs().sort(dim=1).values.gather(1, (m - n_moved)[:, None])
    chosen = torch.where(g.abs() >= level, g, 0.0).sign()
    length = state.step_size / chosen.abs().sum(1).clamp_min(1.0)
    return allowed.project(x + (length[:, None] * chosen).reshape(x.shape))
