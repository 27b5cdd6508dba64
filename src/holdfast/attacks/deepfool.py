"""DeepFool (Moosavi-Dezfooli, Fawzi and Frossard, 2016, arXiv:1511.04599).

Steps to the nearest linearised boundary until the answer changes: a quick estimate of the smallest
change, seldom the smallest itself.

Differences from the paper: a step is the smallest one inside the domain's box (theirs ignores it),
and only the likeliest wrong classes are linearised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor, zeros_like

from holdfast.attacks._classes import fools, gaps_of, goal_of, n_aims
from holdfast.attacks._domain import clipped, ends_of, norm_of
from holdfast.attacks._hyperplane import nearest_class, shortest
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.rows import static_field
from holdfast.threat import Access, AllowedSet

BEYOND = 1e-4  # added to the gap, so that a step ends behind the boundary; the authors'


@dataclass(frozen=True, slots=True)
class DeepFoolState:
    """The iterate of every row."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    goal: Tensor
    x: Tensor
    step: Tensor
    finished: Tensor
    width: int = static_field()


@final
@dataclass(frozen=True, slots=True)
class DeepFool(Attack):
    """Steps to the nearest linearised boundary until the answer changes.

    Attributes:
        steps: At most.
        overshoot: How far behind the linearised boundary a step ends, as a share of its length.
        n_classes: Wrong classes linearised per step, at most; each costs a backward pass.
    """

    card: ClassVar[Card] = Card(
        name="deepfool",
        title="steps to the nearest linearised boundary until the answer changes",
        paper=(
            "Moosavi-Dezfooli, Fawzi and Frossard (2016), DeepFool: a simple and accurate method "
            "to fool deep neural networks, arXiv:1511.04599"
        ),
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2", "l1"}),
        is_stochastic=False,
        is_minimal=True,
    )

    steps: int = 50
    overshoot: float = 0.02
    n_classes: int = 9

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least("deepfool", steps=(self.steps, 1), n_classes=(self.n_classes, 1))
        require_at_least("deepfool", overshoot=(self.overshoot, 0))

    @property
    def max_queries(self) -> int:
        """One point per step and the start."""
        return self.steps + 1

    def init(self, problem: Problem) -> DeepFoolState:
        """Start at x."""
        zero = zeros_like(problem.y)
        return DeepFoolState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            goal=goal_of(problem),
            x=problem.x.clone(),
            step=zero,
            finished=zero > 0,
            width=n_aims(problem, self.n_classes),
        )

    def ask(self, state: DeepFoolState) -> Query:
        """The gaps to the likeliest wrong classes, with a gradient each."""
        return Query(state.x, gaps_of(state.y, state.target, state.goal, state.width))

    def tell(self, state: DeepFoolState, answer: Answer) -> DeepFoolState:
        """Stop where the answer has changed, else step on."""
        norm = norm_of(state.allowed)
        gap, w = nearest_class(answer, norm)
        d = shortest(norm, state.x, w, gap.abs() + BEYOND, ends_of(state.allowed))
        x = clipped(state.x + (1 + self.overshoot) * d, state.allowed)
        won = fools(answer.logits, state.y, state.goal)
        is_stuck = (x == state.x).flatten(1).all(1)
        step = state.step + 1
        return replace(state, x=x, step=step, finished=won | is_stuck | (step > self.steps))
