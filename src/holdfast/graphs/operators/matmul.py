"""Products of two matrices, either or both depending on the input."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.sum import reduce_sum


def matmul(call: Call, left: Ref | Tensor, right: Ref | Tensor) -> Ref:
    """Append ``left @ right`` as products ``(.., a, b, 1) (.., 1, b, c)`` summed over ``b``."""
    x = _grow(call, left, -1)
    y = _grow(call, right, -3)
    terms = multiply(call, x, y)
    return reduce_sum(call, terms, [len(terms.shape) - 2], keep=False)


def _grow(call: Call, value: Ref | Tensor, axis: int) -> Ref | Tensor:
    if isinstance(value, Tensor):
        return value.unsqueeze(axis)
    shape = list(torch.empty(value.shape, device="meta").unsqueeze(axis).shape)
    return reshape(call, value, tuple(shape))
