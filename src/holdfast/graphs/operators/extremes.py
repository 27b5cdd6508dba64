"""The largest or smallest element over axes."""

from __future__ import annotations

import math

from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.maximum import MaxOver
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale


def largest(call: Call, windows: Ref) -> Ref:
    """Append the largest element along the last axis, which goes."""
    out = call.emit(MaxOver(len(windows.shape) - 1), windows)
    return reshape(call, out, out.shape[:-1])


@onnx("GlobalMaxPool")
def global_max(call: Call) -> Ref:
    """Largest position of each channel."""
    ref = call.ref()
    flat = reshape(call, ref, (ref.shape[0], math.prod(ref.shape[1:])))
    return reshape(call, largest(call, flat), (ref.shape[0], *[1] * (len(ref.shape) - 1)))


@onnx("ReduceMax", "ReduceMin")
@aten("amax", "amin")
def reduce_max(call: Call) -> Ref:
    """Largest or smallest element over axes."""
    ref = call.ref()
    given = call.ints(1, "axes" if call.opset else "dim")
    axes = [call.axis(a, ref) for a in given] or list(range(len(ref.shape)))
    keep = bool(call.attributes.get("keepdims", 1) if call.opset else call.get(2, "keepdim", False))
    return largest_over(call, ref, axes, keep, smallest=call.name in ("ReduceMin", "amin"))


@aten("max", "min")
def extremum(call: Call) -> list[Ref | None]:
    """Over one axis; the indices beside the values have no bounds."""
    ref = call.ref()
    if len(call.args) < 2:
        raise call.error("the largest of a whole batch mixes samples; give dim")
    axis = call.axis(int(call.args[1]), ref)
    keep = bool(call.get(2, "keepdim", False))
    return [largest_over(call, ref, [axis], keep, smallest=call.name == "min"), None]


def largest_over(call: Call, ref: Ref, axes: list[int], keep: bool, smallest: bool = False) -> Ref:
    """Append the largest or smallest element over axes (without the batch)."""
    rest = [a for a in range(len(ref.shape)) if a not in axes]
    turned = scale(call, ref, -1.0, 0.0) if smallest else ref
    moved = call.move(lambda p: _last(p, rest, axes), turned)
    out = largest(call, moved)
    shape = [1 if i in axes else s for i, s in enumerate(ref.shape) if keep or i not in axes]
    out = reshape(call, out, tuple(shape))
    return scale(call, out, -1.0, 0.0) if smallest else out


def _last(p: Tensor, rest: list[int], axes: list[int]) -> Tensor:
    order = [0, *(a + 1 for a in rest), *(a + 1 for a in axes)]
    return p.permute(order).flatten(1 + len(rest))
