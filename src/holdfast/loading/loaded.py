"""What every loader returns, and the fixed batch sizes that files may demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.threat import Access


class Loaded(NamedTuple):
    """A model as :class:`holdfast.Model` takes it.

    Attributes:
        f: A module, or a callable from inputs to scores or labels.
        description: What reports call it.
        access: The most that an attacker can see of it.
    """

    f: Callable[..., Any]
    description: str
    access: Access


def in_batches_of(size: int, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``f(x)`` for an ``f`` that takes exactly ``size`` rows: cut, filled up with the last row.

    A filler row's output is dropped, so it takes no part in values or gradients.
    """
    missing = -len(x) % size
    if missing:
        x = torch.cat([x, x[-1:].detach().expand(missing, *x.shape[1:])])
    outputs = [f(part) for part in x.split(size)]
    return torch.cat(outputs)[: len(x) - missing]


def rows_at_a_time(size: int) -> str:
    """What reports say of a fixed batch size."""
    return "one row at a time" if size == 1 else f"{size} rows at a time"
