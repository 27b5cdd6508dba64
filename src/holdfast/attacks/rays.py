"""RayS (Chen and Gu, 2020, arXiv:2006.12792): labels are all it needs.

Differences from the authors' code: rows that never fool the model at full length keep looking with
the same schedule of flips, the blocks are cut from the flattened input, and the search of a radius
stops at a share of eps instead of at 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.rows import like, static_field
from holdfast.threat import Access, AllowedSet

_EXPONENT = {"linf": 0.0, "l2": 0.5, "l1": 1.0}  # ||sign vector of m entries|| = m ** exponent


@dataclass(frozen=True, slots=True)
class RaySState:
    """A row either tries a flipped direction at its best radius, or searches along one."""

    direction: Tensor
    tried: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor
    is_searching: Tensor
    level: Tensor
    block: Tensor
    step: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    finished: Tensor
    longest: float = static_field()


@final
@dataclass(frozen=True, slots=True)
class RayS(Attack):
    """The sign vector whose ray meets the decision boundary first.

    ``min r`` such that ``x + r d`` fools the model, over ``d`` in {-1, 1}^m: signs are flipped
    block by block, the blocks halving in size; a flip that fools the model at the best radius so
    far is kept, and its own radius found by bisection.

    Attributes:
        queries: Points per sample.
        precision: Share of eps at which a bisection stops.
    """

    card: ClassVar[Card] = Card(
        name="rays",
        title="flips the signs of blocks and follows the ray to the boundary, with labels alone",
        paper="Chen and Gu (2020), RayS: A Ray Searching Method for Hard-label Adversarial "
        "Attack, arXiv:2006.12792",
        access=Access.LABELS,
        norms=frozenset(_EXPONENT),
        is_stochastic=False,
        is_minimal=True,
    )

    queries: int = 5000
    precision: float = 0.01

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("rays", queries=(self.queries, 1), precision=(self.precision, 0))

    @property
    def max_queries(self) -> int:
        """As many as the option says."""
        return self.queries

    def init(self, problem: Problem) -> RaySState:
        """All coordinates upwards, at the length that crosses the whole domain."""
        x, allowed = problem.x, problem.allowed
        zero = torch.zeros_like(problem.y)
        lower, upper = allowed.resized(torch.full_like(allowed.radius, torch.inf)).hull()
        width = float((upper - lower).max()) if x.numel() else 0.0
        far = torch.full_like(allowed.radius, torch.inf)
        return RaySState(
            direction=torch.ones_like(x),
            tried=torch.ones_like(x),
            radius=far,
            low=torch.zeros_like(far),
            high=far.clone(),
            is_searching=zero > 0,
            level=zero,
            block=zero - 1,
            step=zero.clone(),
            y=problem.y,
            target=problem.target,
            allowed=allowed,
            finished=zero > 0,
            longest=width * x[0].numel() ** _EXPONENT[_norm(allowed)],
        )

    def ask(self, state: RaySState) -> Query:
        """The tried direction at the best radius, or at the middle of the bisection."""
        at_best = state.radius.clamp_max(state.longest)
        length = torch.where(state.is_searching, (state.low + state.high) / 2, at_best)
        scale = state.tried[0].numel() ** _EXPONENT[_norm(state.allowed)]
        x = state.allowed.x
        box = state.allowed.resized(torch.full_like(state.radius, torch.inf))
        return Query(box.project(x + like(length / scale, x) * state.tried))

    def tell(self, state: RaySState, answer: Answer) -> RaySState:
        """Narrow the bisection, or begin one, or try the next flip."""
        fools = goal_margin(answer.logits, state.y, state.target) > 0
        at_best = state.radius.clamp_max(state.longest)
        middle = (state.low + state.high) / 2
        starts = ~state.is_searching & fools
        low = torch.where(state.is_searching & ~fools, middle, torch.where(starts, 0, state.low))
        high = torch.where(state.is_searching & fools, middle, state.high)
        high = torch.where(starts, at_best, high)
        is_searching = state.is_searching | starts
        ends = is_searching & (high - low <= self.precision * state.allowed.radius.clamp_min(1e-6))
        is_shorter = ends & (high < state.radius)
        state = replace(
            state,
            direction=torch.where(like(is_shorter, state.tried), state.tried, state.direction),
            radius=torch.where(is_shorter, high, state.radius),
            low=low,
            high=high,
            is_searching=is_searching & ~ends,
            step=state.step + 1,
            finished=state.step + 1 >= self.queries,
        )
        return _flipped(state, ~state.is_searching)


def _norm(allowed: AllowedSet) -> str:
    return getattr(allowed, "geometry", "linf")


def _flipped(state: RaySState, rows: Tensor) -> RaySState:
    """The next block of the best direction turned round, in these rows."""
    m = state.direction[0].numel()
    block = state.block + 1
    is_last = block >= 2**state.level
    level = torch.where(is_last, state.level + 1, state.level)
    level = torch.where(2**level > 2 * m, 0, level)
    block = torch.where(is_last, 0, block)
    place = torch.arange(m, device=block.device) * 2 ** level[:, None] // m
    turned = torch.where(place == block[:, None], -1.0, 1.0).to(state.direction.dtype)
    tried = state.direction * turned.reshape(state.direction.shape)
    return replace(
        state,
        tried=torch.where(like(rows, tried), tried, state.tried),
        level=torch.where(rows, level, state.level),
        block=torch.where(rows, block, state.block),
    )
