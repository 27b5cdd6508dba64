"""Losses on rescaled logits, which no softmax saturates (Cheng et al., 2020: MIFPE).

Defensive distillation and other networks with huge logits drive the softmax to exact zeros and
ones, where cross-entropy has no gradient in float32. Logits divided by the gap between the two
largest have a gap of one, always; the divisor counts as constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Answer, Objective, Query
from holdfast.model import Model
from holdfast.trust.routes._base import Way, described

_SMALLEST = 1e-12


@final
@dataclass(frozen=True)
class Rescaled(Way):
    """Every loss sees ``z / (z_1 - z_2)`` instead of the logits z.

    Attributes:
        inner: The route of the gradients.
    """

    name: ClassVar[str] = "rescaled"

    inner: Way | None = None

    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """The same queries with another objective."""
        return self._inside(model, [replace(q, objective=_rescaled(q.objective)) for q in queries])

    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """As without it."""
        return self._inner_cost(draws, n_backward)

    def describe(self) -> str:
        """``on rescaled logits``."""
        return described(self.inner, "on rescaled logits")


def _rescaled(objective: Objective | None) -> Objective:
    assert objective is not None
    return replace(objective, function=_of_unit_gap(objective.function))


@cache
def _of_unit_gap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def unsaturated(logits: Tensor, *rows: Tensor) -> Tensor:
        top = logits.detach().topk(2, dim=1).values
        gap = (top[:, :1] - top[:, 1:]).clamp_min(_SMALLEST)
        return function(logits / gap, *rows)

    return unsaturated


ROUTE = Rescaled
