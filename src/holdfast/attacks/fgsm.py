"""Fast gradient (sign) method (Goodfellow, Shlens and Szegedy, 2015, arXiv:1412.6572)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import loss_named
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.threat import Access, AllowedSet


@dataclass(frozen=True, slots=True)
class FGSMState:
    """A row starts at the clean input and ends at the far side of the set."""

    x: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    has_stepped: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class FGSM(Attack):
    """One step along the gradient: ``argmax <g, z>`` over the whole allowed set.

    With linf this is ``x + eps sign(g)``; in the other norms it is the exact solution of the same
    linearised problem, with the domain's box taken into account.

    Attributes:
        loss: ``ce``, ``margin`` or ``dlr``.
        restarts: Of no use without random numbers; 1.
        n_targets: 0, or targeted steps at the likeliest wrong classes.
    """

    card: ClassVar[Card] = Card(
        name="fgsm",
        title="one step along the gradient: the cheapest attack there is",
        paper="Goodfellow, Shlens and Szegedy (2015), Explaining and Harnessing Adversarial "
        "Examples, arXiv:1412.6572",
        access=Access.GRADIENTS,
        is_stochastic=False,
    )

    loss: str = "ce"
    restarts: int = 1
    n_targets: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown loss."""
        loss_named(self.loss)

    @property
    def max_queries(self) -> int:
        """The clean input and the changed one."""
        return 2

    @property
    def opening(self) -> Callable[..., Tensor] | None:
        """The loss itself, unless it is that of a target."""
        return loss_named(self.loss) if self.n_targets == 0 else None

    def init(self, problem: Problem) -> FGSMState:
        """Every row at its clean input."""
        no = torch.zeros_like(problem.y, dtype=torch.bool)
        return FGSMState(problem.x, problem.y, problem.target, problem.allowed, no, no.clone())

    def phase(self, state: FGSMState) -> Tensor:
        """A gradient, then none."""
        return state.has_stepped.long()

    def ask(self, state: FGSMState) -> Query:
        """The gradient at the clean input, then the answer to the changed one."""
        if bool(state.has_stepped[:1].any()):
            return Query(state.x)
        return Query(state.x, Objective(loss_named(self.loss), (state.y, state.target)))

    def tell(self, state: FGSMState, answer: Answer) -> FGSMState:
        """Take the step."""
        if bool(state.has_stepped[:1].any()):
            return replace(state, finished=state.has_stepped)
        x = state.allowed.maximise_linear(answer.gradients)
        yes = torch.ones_like(state.has_stepped)
        return replace(state, x=x, has_stepped=yes, finished=state.has_stepped)
