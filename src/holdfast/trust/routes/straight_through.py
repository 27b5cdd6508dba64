"""Backward through smooth stand-ins: BPDA (Athalye, Carlini and Wagner, 2018, arXiv:1802.00420)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast._running import mean_of
from holdfast.attacks.base import Answer, Query
from holdfast.model import Model
from holdfast.trust.routes._base import Way
from holdfast.trust.softened import Softened, words


@final
@dataclass(frozen=True)
class StraightThrough(Way):
    """The model's own forward pass, bit for bit; backwards, ``operators`` are smooth.

    Attributes:
        operators: Names as :class:`~holdfast.trust.softened.Softened` meets them.
        width: Of the sigmoids that stand for steps.
        narrowing: How many times narrower they are at the end of an attack that tells its progress.
        inner: Always None: other routes run around this one.
    """

    name: ClassVar[str] = "straight_through"

    operators: tuple[str, ...] = ()
    width: float = 0.25
    narrowing: float = 1.0
    inner: Way | None = None

    def __post_init__(self) -> None:
        """Lists come from a journal."""
        object.__setattr__(self, "operators", tuple(self.operators))

    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """Every draw inside a mode of its own, which takes the first leaf it sees for the input."""
        rounds = [self._once(model, queries) for _ in range(model.draws)]
        if len(rounds) == 1:
            return rounds[0]
        return [mean_of(parts) for parts in zip(*rounds, strict=True)]

    def _once(self, model: Model, queries: list[Query]) -> list[Answer]:
        with Softened(self.operators, self._widths(model, queries)):
            found = model.averaged(queries, 1)
        # inside, a detach may have carried a gradient
        return [Answer(a.logits.detach(), a.losses.detach(), a.gradients) for a in found]

    def _widths(self, model: Model, queries: list[Query]) -> float | Tensor:
        """One for all rows of a call, or each row's own."""
        if self.narrowing == 1 or all(query.progress is None for query in queries):
            return self.width
        done = [
            torch.zeros(len(q.points)) if q.progress is None else q.progress.cpu() for q in queries
        ]
        widths = self.width * self.narrowing ** -torch.cat(done).float()
        return model.block.place(widths).to(model.device)

    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """As without it."""
        return self._inner_cost(draws, n_backward)

    def describe(self) -> str:
        """``gradients through round``."""
        return f"gradients through {words(self.operators)}"


ROUTE = StraightThrough
