"""Towards Evaluating the Robustness of Neural Networks.

Carlini and Wagner (2017, arXiv:1608.04644), the l2 attack. Looks for the smallest change that
reaches the goal: ``min ||x' - x||_2^2 + c max(-m(x'), -confidence)`` with the margin m of the goal,
over ``x' = (lower + upper) / 2 + (upper - lower) / 2 tanh(w)``, which cannot leave the domain, by
Adam on w; c is the smallest one that succeeds, by bisection.

Differences from the paper and its code: distances are measured in widths of the domain, so that
the default constants fit every domain; each row has its own c, Adam and early end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks._weight_search import WeightSearch
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.perturbations.l2 import L2Ball
from holdfast.rows import like, where
from holdfast.threat import Access

# Of x in (-1, 1) before atanh, so that w is finite where x is at the domain's end. The authors'
# 1 - 1e-6 starts there on such a plateau that the test for progress ends every search at once.
SHRINK = 1 - 1e-4
BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
CHECKS = 10  # times per search that progress is looked at
PROGRESS = 1e-4  # relative, of the loss since the last check; less ends the search
REACH = 10.0  # sum of the steps of one search, in units of w


@dataclass(frozen=True, slots=True)
class CarliniWagnerState:
    """Row by row: Adam's iterate and moments, and the search for the weight ``c``."""

    allowed: L2Ball
    y: Tensor
    target: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor
    last_loss: Tensor
    weight: WeightSearch
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class CarliniWagner(Attack):
    """The smallest Euclidean change that reaches the goal.

    Points on the way may lie outside a given ball; the judge takes those inside.

    Attributes:
        steps: Adam steps per search, at most.
        searches: Values of c tried one after the other.
        step_size: Adam's, in units of w. None: 10 / steps, the paper's 0.01 for 1,000 steps, which
            brings a pixel from the end of the domain (w = +-4.95) to anywhere within a search.
        initial_c: The first c.
        confidence: Margin to reach (the paper's kappa); 0: any success.
    """

    card: ClassVar[Card] = Card(
        name="carlini_wagner",
        title="the smallest Euclidean change that succeeds, by gradient descent without projection",
        paper=(
            "Carlini and Wagner (2017), Towards Evaluating the Robustness of Neural Networks, "
            "arXiv:1608.04644"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"l2"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 1000
    searches: int = 9
    step_size: float | None = None
    initial_c: float = 1e-3
    confidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("carlini_wagner", steps=(self.steps, 1), searches=(self.searches, 1))
        tiny = torch.finfo(torch.float32).tiny
        if self.step_size is not None:
            require_at_least("carlini_wagner", step_size=(self.step_size, tiny))
        require_at_least("carlini_wagner", initial_c=(self.initial_c, tiny))
        require_at_least("carlini_wagner", confidence=(self.confidence, 0))

    @property
    def max_queries(self) -> int:
        """One point per step of every search."""
        return self.steps * self.searches

    def init(self, problem: Problem) -> CarliniWagnerState:
        """Start every search at x."""
        assert isinstance(problem.allowed, L2Ball)
        zero = torch.zeros_like(problem.y)
        c = torch.full_like(problem.allowed.radius, self.initial_c)
        return CarliniWagnerState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            w=_start(problem.allowed),
            mean=torch.zeros_like(problem.x),
            square=torch.zeros_like(problem.x),
            step=zero,
            last_loss=torch.full_like(c, torch.inf),
            weight=WeightSearch.starting(c),
            finished=zero > 0,
        )

    def ask(self, state: CarliniWagnerState) -> Query:
        """The margin and its gradient at ``x'(w)``."""
        return Query(_point(state), Objective(goal_margin, (state.y, state.target)))

    def tell(self, state: CarliniWagnerState, answer: Answer) -> CarliniWagnerState:
        """One Adam step; rows whose search is over begin the next one."""
        margin = answer.losses.to(state.last_loss.dtype)
        loss, gradient = self._loss(state, margin, answer.gradients)
        state = self._descend(state, gradient)
        won = (margin > 0) & (margin >= self.confidence)
        is_check = state.step % max(1, self.steps // CHECKS) == 0
        has_stalled = loss > state.last_loss - PROGRESS * state.last_loss.abs()
        is_over = (is_check & has_stalled) | (state.step >= self.steps)
        state = replace(
            state,
            weight=state.weight.noted(won),
            last_loss=torch.where(is_check, loss, state.last_loss),
        )
        return where(is_over, self._next_search(state), state) if bool(is_over.any()) else state

    def _loss(
        self, state: CarliniWagnerState, margin: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The paper's loss ``(n,)`` and its gradient with respect to w."""
        half = _box(state.allowed)[1]
        width = 2 * half.max()
        t = state.w.tanh()
        change = (_point(state) - state.allowed.x) / width
        c = state.weight.c
        loss = change.square().flatten(1).sum(1) - c * margin.clamp_max(self.confidence)
        pull = torch.where(margin < self.confidence, c, 0.0)
        slope = 2 * change / width - like(pull, change) * gradient
        return loss, slope * half * (1 - t.square())

    def _descend(self, state: CarliniWagnerState, gradient: Tensor) -> CarliniWagnerState:
        """Adam (Kingma and Ba, 2015, arXiv:1412.6980), every row with its own clock."""
        step = state.step + 1
        mean = torch.lerp(gradient, state.mean, BETAS[0])
        square = torch.lerp(gradient.square(), state.square, BETAS[1])
        clock = step.to(gradient.dtype)
        rate = (self.step_size or REACH / self.steps) / (1 - BETAS[0] ** clock)
        root = (square / like(1 - BETAS[1] ** clock, square)).sqrt() + ADAM_EPS
        w = state.w - like(rate, mean) * mean / root
        return replace(state, w=w, mean=mean, square=square, step=step)

    def _next_search(self, state: CarliniWagnerState) -> CarliniWagnerState:
        """Start again at x with the next c."""
        weight = state.weight.next()
        return replace(
            state,
            w=_start(state.allowed),
            mean=torch.zeros_like(state.mean),
            square=torch.zeros_like(state.square),
            step=torch.zeros_like(state.step),
            last_loss=torch.full_like(state.last_loss, torch.inf),
            weight=weight,
            finished=weight.number >= self.searches,
        )


def _box(allowed: L2Ball) -> tuple[Tensor, Tensor]:
    """The domain's centre and half width."""
    return (allowed.box_lower + allowed.box_upper) / 2, (allowed.box_upper - allowed.box_lower) / 2


def _start(allowed: L2Ball) -> Tensor:
    """The w of x."""
    centre, half = _box(allowed)
    inner = (allowed.x - centre) / half.clamp_min(torch.finfo(half.dtype).tiny)
    inner = inner.clamp(-1, 1) * SHRINK
    # torch.atanh rounds differently at the end of a batch than in its middle; log1p does not
    return (inner.log1p() - (-inner).log1p()) / 2


def _point(state: CarliniWagnerState) -> Tensor:
    """``x'(w)``; rounding may not lead out of the domain."""
    centre, half = _box(state.allowed)
    point = torch.addcmul(centre, half, state.w.tanh())
    return torch.minimum(torch.maximum(point, state.allowed.box_lower), state.allowed.box_upper)
