"""A walk along the decision boundary towards the clean input, in linf, l2, l1 and l0.

From an input that fools, however far away, bisection finds the boundary; from there every step goes
to the smallest change that the linearised boundary allows within a trust region, as Brendel et al.
(2019, arXiv:1907.01003) do. So a walk that begins at noise ends near a part of the boundary that
gradients at the clean input do not lead to.

Difference from the paper: the problem of a step is not solved by Lagrange multipliers. The change
is made smaller as far as the trust region allows (shortened in l2, clamped in linf, thresholded in
l1, coordinates returned in l0), and what the linearised boundary then lacks is repaid by the
smallest change that reaches it, in the same norm and inside the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._classes import fools, goal_of
from holdfast.attacks._domain import clipped, cosine, ends_of, norm_of, width_of
from holdfast.attacks._hyperplane import length, shortest
from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

BISECT, WALK = 0, 1  # phases: no gradient, one gradient
BISECTIONS = 6
ROUNDS = 8  # of the search for how much smaller a change a step may try
BEYOND = 0.01  # of the gain that the boundary takes: how far behind it a step ends
EXCHANGE = math.sqrt(2.0)  # widths of the domain: one coordinate goes all the way, one returns
LAST = 0.02  # of the trust region's radius, against the first one


@dataclass(frozen=True, slots=True)
class BoundaryWalkState:
    """One row per job.

    Attributes:
        x: The iterate.
        far, low, high: The start, and the shares of the way to it between which the boundary lies.
        scale: Euclidean length of the change where the walk began.
        has_won: Whether any point has fooled; until then steps only climb.
    """

    allowed: AllowedSet
    y: Tensor
    goal: Tensor
    x: Tensor
    far: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    has_won: Tensor
    step: Tensor
    kind: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class BoundaryWalk(Attack):
    """The smallest change: along the boundary, from an input that fools towards the clean one.

    Attributes:
        steps: Gradient steps.
        region: Radius of the first step's trust region, in lengths of the change where the walk
            begins; later ones follow a cosine down to a fiftieth, in l0 until no more than two
            coordinates can change all the way.
    """

    card: ClassVar[Card] = Card(
        name="boundary_walk",
        title="the smallest change, by a walk along the boundary from an input that fools",
        paper=(
            "Brendel, Rauber, Kuemmerer, Ustyuzhaninov and Bethge (2019), Accurate, Reliable and "
            "Fast Robustness Evaluation, arXiv:1907.01003"
        ),
        access=Access.GRADIENTS,
        is_minimal=True,
    )

    steps: int = 200
    region: float = 0.4

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        tiny = torch.finfo(torch.float32).tiny
        require_at_least("boundary_walk", steps=(self.steps, 1), region=(self.region, tiny))

    @property
    def max_queries(self) -> int:
        """The bisection's points, then one per step."""
        return BISECTIONS + self.steps

    def init(self, problem: Problem) -> BoundaryWalkState:
        """At the start given, else at a random input of the domain."""
        zero = torch.zeros_like(problem.y)
        far = problem.start
        if far is None:
            lower, upper = ends_of(problem.allowed)
            noise = problem.rng.fold(0).uniform(tuple(problem.x.shape[1:]), problem.x.dtype)
            far = torch.lerp(lower.expand_as(noise), upper.expand_as(noise), noise)
        share = torch.ones(zero.shape, dtype=problem.x.dtype, device=zero.device)
        return BoundaryWalkState(
            allowed=problem.allowed,
            y=problem.y,
            goal=goal_of(problem),
            x=far,
            far=far,
            low=torch.zeros_like(share),
            high=share,
            scale=share.clone(),
            has_won=zero > 0,
            step=zero,
            kind=torch.full_like(zero, BISECT),
            finished=zero > 0,
        )

    def phase(self, state: BoundaryWalkState) -> Tensor:
        """No gradient, then one."""
        return state.kind

    def ask(self, state: BoundaryWalkState) -> Query:
        """Whether the point fools; or the margin and its gradient."""
        if _kind(state) == BISECT:
            return Query(state.x)
        return Query(state.x, Objective(goal_margin, (state.y, state.goal)))

    def tell(self, state: BoundaryWalkState, answer: Answer) -> BoundaryWalkState:
        """Halve the way to the boundary, or take a step along it."""
        won = fools(answer.logits, state.y, state.goal)
        state = replace(state, has_won=state.has_won | won)
        if _kind(state) == BISECT:
            return _bisected(state, won)
        number = state.step - BISECTIONS
        radius = cosine(number, self.steps, self.region, LAST * self.region) * state.scale
        if norm_of(state.allowed) == "l0":
            radius = radius.maximum(EXCHANGE * width_of(state.allowed))
        x = _stepped(state, answer, radius.to(state.x.dtype))
        step = state.step + 1
        return replace(state, x=x, step=step, finished=step >= self.max_queries)


def _kind(state: BoundaryWalkState) -> int:
    return int(state.kind[0]) if len(state.kind) else WALK


def _bisected(state: BoundaryWalkState, won: Tensor) -> BoundaryWalkState:
    """The next point between x and the start; the walk begins at the last one that fools."""
    tried = (state.low + state.high) / 2
    tried = torch.where(state.step == 0, state.high, tried)
    high = torch.where(won, tried, state.high)
    low = torch.where(won | (state.step == 0), state.low, tried)
    step = state.step + 1
    begins = step >= BISECTIONS
    share = torch.where(begins, high, (low + high) / 2)
    x = torch.lerp(state.allowed.x, state.far, like(share, state.x))
    return replace(
        state,
        x=x,
        low=low,
        high=high,
        scale=length(x - state.allowed.x, "l2").to(share.dtype),
        step=step,
        kind=torch.where(begins, WALK, BISECT),
    )


def _stepped(state: BoundaryWalkState, answer: Answer, radius: Tensor) -> Tensor:
    """The smallest change within ``radius`` that the linearised boundary allows ``(n, *shape)``."""
    clean, norm = state.allowed.x, norm_of(state.allowed)
    change, g = state.x - clean, answer.gradients
    at_boundary = (g * change).flatten(1).sum(1) - answer.losses.to(g.dtype)  # of g . change
    wanted = at_boundary + BEYOND * at_boundary.abs()
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    first = _repaid(state, change, g, wanted, norm)
    climbed = _repaid(state, change, g, wanted, "l2")
    best = torch.where(like(state.has_won, first), first, climbed)
    for _ in range(ROUNDS):
        share = (low + high) / 2
        tried = _repaid(state, _smaller(change, g, share, norm), g, wanted, norm)
        fits = state.has_won & (length(tried - state.x, "l2") <= radius)
        best = torch.where(like(fits, best), tried, best)
        low, high = torch.where(fits, share, low), torch.where(fits, high, share)
    size = length(best - state.x, "l2")
    back = (radius / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)
    return torch.lerp(state.x, best, like(back, best))


def _smaller(change: Tensor, g: Tensor, share: Tensor, norm: str) -> Tensor:
    """The change, smaller by ``share`` ``(n,)`` between 0 (as it is) and 1 (none)."""
    size = change.flatten(1).abs()
    if norm == "l2":
        return change * like(1 - share, change)
    if norm == "l0":
        return _returned(change, g, share)
    limit = like(size.amax(1) * (1 - share), change)
    if norm == "linf":
        return change.clamp(-limit, limit)
    cut = like(size.amax(1), change) - limit
    return change.sign() * (change.abs() - cut).clamp_min(0.0)


def _returned(change: Tensor, g: Tensor, share: Tensor) -> Tensor:
    """The changed coordinates that the margin needs least are returned."""
    worth = torch.where(change != 0, (change * g).clamp_min(0.0), -1.0).flatten(1)
    rank = worth.argsort(dim=1, descending=True, stable=True).argsort(1)
    n_kept = ((change != 0).flatten(1).sum(1) * (1 - share)).floor()
    return torch.where((rank < n_kept[:, None]).reshape(change.shape), change, 0.0)


def _repaid(
    state: BoundaryWalkState, change: Tensor, g: Tensor, wanted: Tensor, norm: str
) -> Tensor:
    """The point of a change, moved on until ``g . change`` is what is wanted ``(n,)`` at least."""
    x = state.allowed.x + change
    lacks = (wanted - (g * change).flatten(1).sum(1)).clamp_min(0.0)
    return clipped(x + shortest(norm, x, g, lacks, ends_of(state.allowed)), state.allowed)
