"""Expectation over the model's own randomness (Athalye et al., 2018, arXiv:1707.07397)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.attacks.base import Answer, Query
from holdfast.model import Model
from holdfast.trust.routes._base import Way, described


@final
@dataclass(frozen=True)
class Expectation(Way):
    """Logits, losses and gradients averaged over ``draws`` fresh answers.

    Attributes:
        draws: Answers per point.
        inner: The route of each answer.
    """

    name: ClassVar[str] = "expectation"

    draws: int = 16
    inner: Way | None = None

    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """The mean of so many answers."""
        before, model.draws = model.draws, self.draws
        try:
            return self._inside(model, queries)
        finally:
            model.draws = before

    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """So many passes instead of the model's usual draws."""
        return self._inner_cost(self.draws, n_backward)

    def describe(self) -> str:
        """``gradients averaged over 16 answers``."""
        return described(self.inner, f"gradients averaged over {self.draws} answers")


ROUTE = Expectation
