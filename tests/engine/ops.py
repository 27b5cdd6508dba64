"""Counting the operators that torch runs, in tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_ops() -> Iterator[Counter[str]]:
    """How often each operator (``aten::add``) ran inside."""
    with _Counting() as mode:
        yield mode.counts
