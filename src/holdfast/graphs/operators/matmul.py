"""Products of two matrices, either or both depending on the input."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref
from holdfast.graphs.operator import Box, Operator, Pulled
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.sum import reduce_sum
from holdfast.graphs.shapes import flattened


@final
@dataclass(frozen=True, slots=True)
class MatMul(Operator):
    """``x @ y`` of two variables ``(.., a, b)`` and ``(.., b, c)`` with equal leading axes."""

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, .., a, c)``."""
        return xs[0] @ xs[1]

    def interval(self, *boxes: Box) -> Box:
        """Corners of every product, summed."""
        x, y = (
            Box(b.lower.unsqueeze(axis), b.upper.unsqueeze(axis))
            for b, axis in zip(boxes, (-1, -3), strict=True)
        )
        corners = torch.stack(
            [x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper]
        )
        return Box(corners.amin(0).sum(-2), corners.amax(0).sum(-2))

    def magnitude(self, *boxes: Box) -> Tensor:
        """Both slopes, the intercept and the value are within this product."""
        return 4 * (boxes[0].magnitude() @ boxes[1].magnitude())

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """McCormick's planes (1976) as in ``Product``, summed by matrix products."""
        x, y = (Box(b.lower.unsqueeze(1), b.upper.unsqueeze(1)) for b in boxes)
        to_x = A @ y.upper.mT + A.relu() @ (y.lower - y.upper).mT
        constant = -flattened(to_x * x.lower, 2).sum(2)
        return Pulled((to_x, x.lower.mT @ A), constant)


def matmul(call: Call, left: Ref | Tensor, right: Ref | Tensor) -> Ref:
    """Append ``left @ right``; with a constant as products summed over the inner axis."""
    if isinstance(left, Ref) and isinstance(right, Ref) and left.shape[:-2] == right.shape[:-2]:
        return call.emit(MatMul(), left, right)
    x = _grow(call, left, -1)
    y = _grow(call, right, -3)
    terms = multiply(call, x, y)
    return reduce_sum(call, terms, [len(terms.shape) - 2], keep=False)


def _grow(call: Call, value: Ref | Tensor, axis: int) -> Ref | Tensor:
    if isinstance(value, Tensor):
        return value.unsqueeze(axis)
    shape = list(torch.empty(value.shape, device="meta").unsqueeze(axis).shape)
    return reshape(call, value, tuple(shape))
