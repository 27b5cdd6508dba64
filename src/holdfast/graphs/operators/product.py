"""Products of two variables, and quotients through the reciprocal."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Box, Operator, Pulled, dot, sum_to
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Product(Operator):
    """``x y`` elementwise, broadcasting (equal ranks)."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0] * xs[1]

    def interval(self, *boxes: Box) -> Box:
        """The four corners decide."""
        x, y = boxes
        corners = torch.stack(
            torch.broadcast_tensors(
                x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper
            )
        )
        return Box(corners.amin(0), corners.amax(0))

    def magnitude(self, *boxes: Box) -> Tensor:
        """Both slopes, the intercept and the value are within this product."""
        return 4 * boxes[0].magnitude() * boxes[1].magnitude()

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """McCormick's planes (1976) through the corners with the least ``x``.

        The two planes on either side are equal at the centre of the box, so neither is better.
        """
        x, y = boxes
        to_x = torch.addcmul(
            A * y.upper.unsqueeze(1), A.relu(), (y.lower - y.upper).unsqueeze(1)
        )  # the slope in x is the y of the corner, by the sign of A
        constant = -dot(to_x, (x.lower + torch.zeros_like(y.lower)).unsqueeze(1))
        to_y = sum_to(A * x.lower.unsqueeze(1), y.lower.shape[1:])
        return Pulled((sum_to(to_x, x.lower.shape[1:]), to_y), constant)


def multiply(call: Call, x: Ref | Tensor | float, y: Ref | Tensor | float) -> Ref:
    """Append ``x y``."""
    if isinstance(x, Ref) and isinstance(y, Ref):
        if x.index == y.index:
            from holdfast.graphs.operators.power import power

            return power(call, x, 2.0)
        return call.emit(Product(), *_same_rank(call, x, y))
    ref, factor = (x, y) if isinstance(x, Ref) else (y, x)
    assert isinstance(ref, Ref)
    assert not isinstance(factor, Ref)
    return scale(call, ref, factor, 0.0)


def _same_rank(call: Call, x: Ref, y: Ref) -> tuple[Ref, Ref]:
    from holdfast.graphs.operators.reshape import reshape

    rank = max(len(x.shape), len(y.shape))
    grown = [reshape(call, r, (*[1] * (rank - len(r.shape)), *r.shape)) for r in (x, y)]
    return grown[0], grown[1]


def divide(call: Call, x: Ref | Tensor | float, y: Ref | Tensor | float) -> Ref:
    """Append ``x / y``."""
    if isinstance(y, Ref):
        from holdfast.graphs.operators.power import reciprocal

        return multiply(call, x, reciprocal(call, y))
    factor = 1.0 / torch.as_tensor(y, dtype=torch.float64)
    return multiply(call, x, factor)


@onnx("Mul")
@aten("mul")
def build_product(call: Call) -> Ref:
    """Elementwise product."""
    return multiply(call, call.args[0], call.args[1])


@onnx("Div")
@aten("div")
def build_quotient(call: Call) -> Ref:
    """Elementwise quotient."""
    if call.attributes.get("rounding_mode"):
        raise call.error("rounding modes of division are not supported")
    return divide(call, call.args[0], call.args[1])
