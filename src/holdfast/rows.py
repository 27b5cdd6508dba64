"""Row operations on records of tensors.

The engine keeps one row per job. A record (a dataclass whose tensors share their first dimension,
possibly with records inside) is cut, filled and joined row by row without knowing what it means.
Fields that are not tensors, and fields marked ``static_field()``, are the same for every row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")

_STATIC = "holdfast_static"


def static_field() -> Any:
    """A dataclass field shared by all rows, e.g. the domain's bounds."""
    return dataclasses.field(metadata={_STATIC: True})


def take(record: Record, rows: Tensor) -> Record:
    """A new record of ``rows`` (int64 indices or a bool mask) of every tensor."""
    return _map(lambda tensors: tensors[0][rows], [record])


def join(records: list[Record]) -> Record:
    """One record with the rows of all ``records``, in order."""
    if len(records) == 1:
        return records[0]
    return _map(lambda tensors: torch.cat(tensors), records)


def put(record: Record, rows: Tensor, other: Record) -> Record:
    """``record`` with its ``rows`` overwritten in place by the rows of ``other``."""
    return _map(lambda tensors: tensors[0].index_copy_(0, rows, tensors[1]), [record, other])


def where(mask: Tensor, record: Record, other: Record) -> Record:
    """Rows of ``record`` where ``mask`` (n,) holds, rows of ``other`` elsewhere."""
    return _map(lambda t: torch.where(like(mask, t[0]), t[0], t[1]), [record, other])


def like(values: Tensor, reference: Tensor) -> Tensor:
    """``values`` (n,) with trailing axes of size one, to broadcast against ``reference``."""
    return values.reshape(-1, *(1,) * (reference.ndim - 1))


def copied(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Indices of ``n`` copies of every one of ``rows``, one after the other, and their numbers."""
    index = torch.arange(n * len(rows), device=rows.device)
    return index // n, index % n


def _map(function: Callable[[list[Tensor]], Tensor], records: list[Any]) -> Any:
    changes: dict[str, Any] = {}
    for name in _names(type(records[0])):
        values = [getattr(record, name) for record in records]
        if isinstance(values[0], Tensor):
            changes[name] = function(values)
        elif dataclasses.is_dataclass(values[0]):
            changes[name] = _map(function, values)
    return dataclasses.replace(records[0], **changes)


@lru_cache
def _names(kind: type) -> tuple[str, ...]:
    """Fields that may differ from row to row."""
    fields = dataclasses.fields(kind)
    return tuple(field.name for field in fields if not field.metadata.get(_STATIC))
