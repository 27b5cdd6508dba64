"""Linear maps of the last axis."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.matmul import matmul


@final
@dataclass(frozen=True, slots=True)
class Linear(Affine):
    """``z W^T + b`` over the last axis; weight ``(out, in)``, bias ``(out,)``."""

    weight: Tensor
    bias: Tensor

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *, in) -> (n, *, out)``."""
        return F.linear(xs[0], self.weight, self.bias)

    def interval(self, *boxes: Box) -> Box:
        """Centre and radius."""
        lower, upper = boxes[0]
        centre = self.run((lower + upper) / 2)
        radius = F.linear((upper - lower) / 2, self.weight.abs())
        return Box(centre - radius, centre + radius)

    def magnitude(self, *boxes: Box) -> Tensor:
        """``|W| |z| + |b|``."""
        return F.linear(boxes[0].magnitude(), self.weight.abs(), self.bias.abs())

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """``A W`` and ``A b``."""
        constant = A.sum(tuple(range(2, A.dim() - 1))) if A.dim() > 3 else A
        return Pulled((A @ self.weight,), constant @ self.bias)


@onnx("Gemm")
def gemm(call: Call) -> Ref:
    """``alpha A B + beta C`` with a constant B."""
    weight = call.constant(1)
    if weight is None or call.attributes.get("transA", 0):
        raise call.error("needs a constant second factor and transA = 0")
    if not call.attributes.get("transB", 0):
        weight = weight.T
    weight = weight * call.attributes.get("alpha", 1.0)
    bias = call.constant(2) if len(call.args) > 2 else None
    bias = torch.zeros(len(weight)) if bias is None else bias * call.attributes.get("beta", 1.0)
    return call.emit(Linear(weight.contiguous(), bias.expand(len(weight)).contiguous()), call.ref())


@aten("addmm")
def addmm(call: Call) -> Ref:
    """``b + x W``."""
    bias, weight = call.constant(0), call.constant(2)
    assert bias is not None
    assert weight is not None
    weight = weight.T * call.attributes.get("alpha", 1)
    bias = bias * call.attributes.get("beta", 1)
    return call.emit(
        Linear(weight.contiguous(), bias.expand(len(weight)).contiguous()), call.ref(1)
    )


@aten("linear")
def linear(call: Call) -> Ref:
    """``x W^T + b``."""
    weight, bias = call.constant(1), call.constant(2, "bias") if len(call.args) > 2 else None
    assert weight is not None
    return call.emit(Linear(weight, torch.zeros(len(weight)) if bias is None else bias), call.ref())


@onnx("MatMul")
@aten("mm", "bmm", "matmul")
def product(call: Call) -> Ref:
    """A matrix product: with a constant on the right it is linear in the last axis."""
    left, right = call.args[0], call.args[1]
    if isinstance(right, Tensor) and right.dim() == 2:
        return call.emit(Linear(right.T.contiguous(), right.new_zeros(right.shape[1])), call.ref())
    return matmul(call, left, right)
