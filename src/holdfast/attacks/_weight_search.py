"""The search for the weight c of a penalty: the smallest one that leads to a success.

Attacks that trade the size of a change against its success (``size + c loss``) run one search per
value of c: c grows while none has succeeded, and is bisected from then on (Carlini and Wagner,
2017, arXiv:1608.04644).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 10.0  # of c while no search has succeeded


@dataclass(frozen=True, slots=True)
class WeightSearch:
    """Where every row stands.

    Attributes:
        c: The weight of the search that runs ``(n,)``.
        lower, upper: The largest that failed, the smallest that succeeded; 0 and infinite at first.
        number: Searches ended ``(n,)`` int64.
        has_won: Whether the one that runs has succeeded ``(n,)``.
    """

    c: Tensor
    lower: Tensor
    upper: Tensor
    number: Tensor
    has_won: Tensor

    @staticmethod
    def starting(c: Tensor) -> WeightSearch:
        """The first search, with weights ``c`` ``(n,)``."""
        number = torch.zeros_like(c, dtype=torch.int64)
        far = torch.full_like(c, torch.inf)
        return WeightSearch(c, torch.zeros_like(c), far, number, number > 0)

    def noted(self, won: Tensor) -> WeightSearch:
        """The same searches, of which ``won`` ``(n,)`` have succeeded just now."""
        return WeightSearch(self.c, self.lower, self.upper, self.number, self.has_won | won)

    def next(self) -> WeightSearch:
        """The next search: with a smaller c after a success, else with a larger one."""
        upper = torch.where(self.has_won, self.c, self.upper)
        lower = torch.where(self.has_won, self.lower, self.c)
        c = torch.where(upper.isfinite(), (lower + upper) / 2, self.c * GROWTH)
        return WeightSearch(c, lower, upper, self.number + 1, torch.zeros_like(self.has_won))
