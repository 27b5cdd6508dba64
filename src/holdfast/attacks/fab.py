"""Fast Adaptive Boundary attack (Croce and Hein, 2020, arXiv:1907.02044).

Looks for the smallest change: the boundary is linearised at the iterate, the iterate and x are both
projected onto the plane inside the box, and the next iterate lies between the two projections, the
nearer to x the closer the boundary is. A point that fools is pulled back towards x.

Differences from the authors' code: one query both checks a point and gives the next gradients, so
that a step costs one forward pass unless the last point fooled (theirs: always two); untargeted,
only the likeliest wrong classes are linearised (theirs: all); any box; a run whose iterate no
longer moves ends; later starts are drawn within the best distance so far (theirs: within eps).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, gaps_of, goal_of, n_aims
from holdfast.attacks._domain import clipped, ends_of, norm_of
from holdfast.attacks._hyperplane import TINY, length, nearest_class, shortest
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.engine.random import Rng
from holdfast.rows import like, static_field
from holdfast.threat import Access, AllowedSet

SHORTEST = 1e-8  # the authors'; of a projection's length
REACH = 0.5  # of the best distance: where later starts are drawn


@dataclass(frozen=True, slots=True)
class FABState:
    """The iterate of every row; ``is_candidate``: it may fool, and is judged first."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    x: Tensor
    best: Tensor
    is_candidate: Tensor
    step: Tensor
    start: Tensor
    rng: Rng
    finished: Tensor
    width: int = static_field()


@final
@dataclass(frozen=True, slots=True)
class FAB(Attack):
    """The smallest change that fools, by projections onto the linearised boundary.

    Attributes:
        steps: Steps of each start.
        starts: The first is x; the others are drawn around it.
        n_targets: 0: one run that goes for the nearest class. Otherwise runs towards the likeliest
            wrong classes, likeliest first (FAB-T with ``n_targets=9``).
        n_classes: Wrong classes linearised per step of an untargeted run, at most; each costs a
            backward pass.
        alpha_max: Largest weight of the projection of x.
        eta: Overshoot beyond the linearised boundary.
        beta: A point that fools is drawn back to this share of its change.
        is_thrifty: Go on from the point drawn back with the plane of the point that fooled, instead
            of asking for new gradients there: a step then costs one forward and backward pass.
    """

    card: ClassVar[Card] = Card(
        name="fab",
        title="the smallest change that succeeds, by projections onto the linearised boundary",
        paper=(
            "Croce and Hein (2020), Minimally distorted Adversarial Examples with a Fast Adaptive "
            "Boundary Attack, arXiv:1907.02044"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2", "l1"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 100
    starts: int = 1
    n_targets: int = 0
    n_classes: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    is_thrifty: bool = False

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("fab", steps=(self.steps, 1), starts=(self.starts, 1))
        require_at_least("fab", n_targets=(self.n_targets, 0), n_classes=(self.n_classes, 1))
        require_at_least("fab", alpha_max=(self.alpha_max, 0), eta=(self.eta, 1))
        require_at_least("fab", beta=(self.beta, 0))

    @property
    def max_queries(self) -> int:
        """Two per step at most: a point that fools, and the one it is drawn back to."""
        return 2 * self.steps * self.starts

    def init(self, problem: Problem) -> FABState:
        """Start at x, or at the points given: those that fool are drawn back at once."""
        zero = torch.zeros_like(problem.y)
        x = problem.x if problem.start is None else problem.start
        return FABState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            x=x.clone(),
            best=torch.full(zero.shape, torch.inf, device=zero.device, dtype=problem.x.dtype),
            is_candidate=(x != problem.x).flatten(1).any(1),
            step=zero,
            start=zero.clone(),
            rng=problem.rng,
            finished=zero > 0,
            width=n_aims(problem, self.n_classes),
        )

    def ask(self, state: FABState) -> Query:
        """The logits of the classes aimed at minus the label's, with a gradient each."""
        return Query(state.x, gaps_of(state.y, state.target, state.goal, state.width))

    def tell(self, state: FABState, answer: Answer) -> FABState:
        """Draw back a point that fools; from any other go on to the next one."""
        x, x0, norm = state.x, state.allowed.x, norm_of(state.allowed)
        won = state.is_candidate & fools(answer.logits, state.y, state.goal)
        best = torch.where(won, state.best.minimum(length(x - x0, norm)), state.best)
        is_last = state.is_candidate & (state.step >= self.steps)
        back = x0 + self.beta * (x - x0)
        rests = won & (not self.is_thrifty)
        forth = self._step(state, torch.where(like(won, x), back, x), answer)
        is_stuck = (forth == x).flatten(1).all(1) & ~rests
        ends = is_last | is_stuck
        state = replace(
            state,
            x=torch.where(like(rests, x), back, forth),
            best=best,
            is_candidate=~rests,
            step=state.step + ~rests,
        )
        return self._start_again(state, ends)

    def _step(self, state: FABState, x: Tensor, answer: Answer) -> Tensor:
        """The next iterate after ``x``: overshoot both projections, weighed by their lengths."""
        x0, norm = state.allowed.x, norm_of(state.allowed)
        gap, w = nearest_class(answer, norm)
        box = ends_of(state.allowed)
        d = shortest(norm, x, w, _along(w, state.x - x) - gap.double(), box)
        d0 = shortest(norm, x0, w, _along(w, state.x - x0) - gap.double(), box)
        a, a0 = length(d, norm).clamp_min(SHORTEST), length(d0, norm).clamp_min(SHORTEST)
        alpha = like((a / (a + a0)).clamp_max(self.alpha_max), x)
        z = torch.lerp(x + self.eta * d, x0 + self.eta * d0, alpha)
        return clipped(z, state.allowed)

    def _start_again(self, state: FABState, ends: Tensor) -> FABState:
        """Rows whose start is over begin the next one, at a random point around x."""
        start = state.start + ends
        finished = ends & (start >= self.starts)
        if self.starts == 1:
            return replace(state, start=start, finished=finished)
        return replace(
            state,
            x=torch.where(like(ends, state.x), _drawn(state, start), state.x),
            is_candidate=state.is_candidate & ~ends,
            step=torch.where(ends, 0, state.step),
            start=start,
            finished=finished,
        )


def _along(w: Tensor, change: Tensor) -> Tensor:
    """``w . change`` ``(n,)``, in float64."""
    return (w.double() * change.double()).flatten(1).sum(1)


def _drawn(state: FABState, start: Tensor) -> Tensor:
    """A random point at half the best distance from x, or half of eps where none is known."""
    x0, norm = state.allowed.x, norm_of(state.allowed)
    shape, rng = tuple(x0.shape[1:]), state.rng.fold(start)
    is_box = norm == "linf"
    noise = 2 * rng.uniform(shape, x0.dtype) - 1 if is_box else rng.normal(shape, x0.dtype)
    radius = REACH * torch.minimum(state.best, state.allowed.radius.to(state.best.dtype))
    scale = radius / length(noise, norm).clamp_min(TINY)
    return clipped(x0 + like(scale, x0) * noise, state.allowed)
