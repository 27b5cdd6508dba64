"""Sums and means over axes."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Sum(Affine):
    """Sum over axes (counted without the batch), which stay with length one."""

    axes: tuple[int, ...]

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in) -> (n, *in with ones)``."""
        return xs[0].sum([a + 1 for a in self.axes], keepdim=True)

    def wobble(self, boxes: Sequence[Box], box: Box, magnitude: Tensor) -> Box:
        """Each end is a sum of ends of the same side."""
        return Box(self.run(boxes[0].lower.abs()), self.run(boxes[0].upper.abs()))

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """The same coefficient for every summand."""
        return Pulled((A.expand(*A.shape[:2], *boxes[0].lower.shape[1:]),), None)


def reduce_sum(call: Call, ref: Ref, axes: Sequence[int], keep: bool, mean: bool = False) -> Ref:
    """Append a sum or mean over ``axes`` (without the batch)."""
    axes = sorted(axes)
    count = torch.Size([ref.shape[a] for a in axes]).numel()
    out = call.emit(Sum(tuple(axes)), ref)
    if mean:
        out = scale(call, out, torch.tensor(1.0 / count, dtype=torch.float64), 0.0)
    if not keep:
        out = reshape(call, out, tuple(s for i, s in enumerate(out.shape) if i not in axes))
    return out


def _axes(call: Call, ref: Ref, name: str) -> list[int]:
    given = call.ints(1, name)
    return [call.axis(a, ref) for a in given] or list(range(len(ref.shape)))


@onnx("ReduceSum", "ReduceMean")
def onnx_reduce(call: Call) -> Ref:
    """Sum or mean over given axes, all by default."""
    ref = call.ref()
    keep = bool(call.attributes.get("keepdims", 1))
    return reduce_sum(call, ref, _axes(call, ref, "axes"), keep, call.name == "ReduceMean")


@aten("sum", "mean")
def aten_reduce(call: Call) -> Ref:
    """Sum or mean over given axes."""
    ref = call.ref()
    keep = bool(call.get(2, "keepdim", False))
    return reduce_sum(call, ref, _axes(call, ref, "dim"), keep, call.name == "mean")


@onnx("GlobalAveragePool")
def global_average(call: Call) -> Ref:
    """Mean over all positions of each channel."""
    ref = call.ref()
    return reduce_sum(call, ref, range(1, len(ref.shape)), keep=True, mean=True)
