"""Shapes of values that may be one number per sample."""

from __future__ import annotations

from torch import Tensor


def flattened(values: Tensor, after: int = 1) -> Tensor:
    """All axes but the first ``after`` as one, of length one where there are none.

    ``(n, *shape) -> (n, size)`` also for shape (): a network with one logit may return ``(n,)``.
    """
    return values.flatten(after) if values.ndim > after else values.unsqueeze(-1)
