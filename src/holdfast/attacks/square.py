"""Square Attack: a query-efficient black-box attack via random search.

Andriushchenko, Croce, Flammarion and Hein (2020, arXiv:1912.00049); in l1 Croce and Hein (2021,
arXiv:2103.01208). Maximises the margin over the ball by random search with localised changes whose
size shrinks: each step repaints one random window and keeps it where the margin did not fall. No
gradient is used, so nothing hides from it.

Differences from the papers and their reference code: every row draws its own window (the code
shares one in a batch) from all positions (the code never draws the last), windows fit inputs that
are not square, an equal margin is accepted (a walk over the plateaus of saturated or rounded
scores), and a target's margin is taken against all other classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_schedule
from holdfast.attacks._square import l1, l2, linf, masses
from holdfast.attacks._square.patterns import L1_PATTERN, L2_PATTERN, Pattern
from holdfast.attacks._square.windows import Windows, windows_for
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.engine.random import Rng
from holdfast.perturbations.l1 import L1Ball
from holdfast.perturbations.l2 import L2Ball
from holdfast.rows import copied, like, static_field, take
from holdfast.threat import Access, AllowedSet


@dataclass(frozen=True, slots=True)
class SquareState:
    """One row per job: the best point so far, and the point proposed next."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    rng: Rng
    step: Tensor
    best: Tensor
    best_margin: Tensor
    points: Tensor
    finished: Tensor
    windows: Windows = static_field()


@final
@dataclass(frozen=True, slots=True)
class Square(Attack):
    """Random search with square windows, forward passes only.

    Attributes:
        queries: Points per job, the starting point among them.
        p_init: Fraction of the input that the first windows cover.
        restarts: Jobs per sample.
        rescale_schedule: Stretch the shrinking of windows, made for 10,000 queries, to ``queries``.
    """

    card: ClassVar[Card] = Card(
        name="square",
        title="random search with shrinking square windows, without gradients",
        paper="Andriushchenko, Croce, Flammarion and Hein (2020), Square Attack, arXiv:1912.00049; "
        "in l1 Croce and Hein (2021), Mind the Box, arXiv:2103.01208",
        access=Access.SCORES,
        norms=frozenset({"linf", "l2", "l1"}),
    )

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot run."""
        require_schedule("Square", self.queries, self.restarts, self.p_init)

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.queries

    def init(self, problem: Problem) -> SquareState:
        """Start from stripes (linf) or tiles (l2, l1) of random sign and full size."""
        x, kind = problem.x, _pattern_of(problem.allowed)
        stretch = self.queries / 10_000 if self.rescale_schedule else 1.0
        windows = windows_for(tuple(x.shape[1:]), self.p_init, stretch, kind, x.device, x.dtype)
        points = _start(problem.allowed, windows, problem.rng.fold(0))
        return SquareState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            rng=problem.rng.fold(1),
            step=torch.zeros_like(problem.y),
            best=points.clone(),
            best_margin=torch.full_like(points.flatten(1)[:, 0], -torch.inf),
            points=points,
            finished=torch.zeros_like(problem.y, dtype=torch.bool),
            windows=windows,
        )

    def ask(self, state: SquareState) -> Query:
        """The proposed point; its logits are enough."""
        return Query(state.points)

    def tell(self, state: SquareState, answer: Answer) -> SquareState:
        """Keep the point where the margin did not fall, and propose the next one."""
        gain = _gain(state, answer)
        is_better = gain >= state.best_margin
        # exact for weights 0 and 1, and far faster than torch.where
        best = torch.lerp(state.best, state.points, like(is_better.to(gain.dtype), state.best))
        return replace(
            _proposed(state, best),
            step=state.step + 1,
            best_margin=torch.where(is_better, gain, state.best_margin),
            finished=state.step + 1 >= self.queries,
        )

    def ahead(self, state: SquareState, n: int) -> SquareState:
        """The windows that come next where none of them raises the margin."""
        rows, passed = copied(state.y, n)
        states = take(state, rows)
        size = _n_numbers(state.allowed, state.windows)
        rng, earlier = states.rng, (passed - 1).clamp_min(0)
        moved = _moved(
            states.allowed,
            states.best,
            state.windows,
            rng.skip(earlier * size),
            states.step + earlier,
        )
        return replace(
            states,
            points=torch.where(like(passed > 0, moved), moved, states.points),
            rng=rng.skip(passed * size),
            step=states.step + passed,
            finished=states.step + passed >= self.queries,
        )

    def is_fruitless(self, state: SquareState, answer: Answer) -> Tensor:
        """The margin fell."""
        return ~(_gain(state, answer) >= state.best_margin)

    def begin(self, state: SquareState, points: Tensor, margins: Tensor) -> SquareState:
        """The whole schedule again, from ``points`` whose margins ``(n,)`` are known."""
        state = replace(state, step=torch.zeros_like(state.step), best_margin=margins)
        return replace(_proposed(state, points), finished=torch.zeros_like(state.finished))


def _gain(state: SquareState, answer: Answer) -> Tensor:
    """The margin of the points asked for ``(n,)``."""
    return goal_margin(answer.logits, state.y, state.target).to(state.best.dtype)


def _proposed(state: SquareState, best: Tensor) -> SquareState:
    """The best point so far, and one beside it to look at next."""
    points = _moved(state.allowed, best, state.windows, state.rng, state.step)
    rng = state.rng.skip(_n_numbers(state.allowed, state.windows))
    return replace(state, rng=rng, best=best, points=points)


def _pattern_of(allowed: AllowedSet) -> Pattern | None:
    """What fills the windows; None: nothing but a sign."""
    if isinstance(allowed, L2Ball):
        return L2_PATTERN
    return L1_PATTERN if isinstance(allowed, L1Ball) else None


def _start(allowed: AllowedSet, windows: Windows, rng: Rng) -> Tensor:
    """The first points, of full size."""
    if isinstance(allowed, L2Ball):
        return l2.start(allowed, windows, rng)
    if isinstance(allowed, L1Ball):
        return l1.start(allowed, windows, rng)
    return linf.stripes(allowed, windows, rng)


def _n_numbers(allowed: AllowedSet, windows: Windows) -> int:
    """Random numbers of one move of one row."""
    has_masses = isinstance(allowed, L2Ball | L1Ball)
    return masses.n_numbers(windows) if has_masses else linf.n_numbers(windows)


def _moved(allowed: AllowedSet, best: Tensor, windows: Windows, rng: Rng, step: Tensor) -> Tensor:
    """Points one window away from ``best``."""
    if isinstance(allowed, L2Ball):
        return l2.move_mass(allowed, best, windows, rng, step)
    if isinstance(allowed, L1Ball):
        return l1.move_mass(allowed, best, windows, rng, step)
    return linf.repaint(allowed, best, windows, rng, step)
