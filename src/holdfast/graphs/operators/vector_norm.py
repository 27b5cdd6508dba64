"""Norms of vectors and standard deviations."""

from __future__ import annotations

import math

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.extremes import largest_over
from holdfast.graphs.operators.norms import variance
from holdfast.graphs.operators.piecewise import absolute
from holdfast.graphs.operators.power import Sqrt, Square
from holdfast.graphs.operators.relu import relu
from holdfast.graphs.operators.sum import reduce_sum


@aten("linalg_vector_norm", "norm")
def build_norm(call: Call) -> Ref:
    """Orders 1, 2 and infinity, over some axes or all."""
    ref = call.ref()
    order = float(call.get(1, "ord", call.get(1, "p", 2)))
    axes = [call.axis(a, ref) for a in call.ints(2, "dim")] or list(range(len(ref.shape)))
    return _norm(call, ref, order, axes, bool(call.get(3, "keepdim", False)))


@onnx("ReduceL1", "ReduceL2")
def onnx_norm(call: Call) -> Ref:
    """Orders 1 and 2."""
    ref = call.ref()
    axes = [call.axis(a, ref) for a in call.ints(1, "axes")] or list(range(len(ref.shape)))
    keep = bool(call.attributes.get("keepdims", 1))
    return _norm(call, ref, float(call.name[-1]), axes, keep)


def _norm(call: Call, ref: Ref, order: float, axes: list[int], keep: bool) -> Ref:
    if order == 1:
        return reduce_sum(call, absolute(call, ref), axes, keep)
    if order == 2:
        return _root(call, reduce_sum(call, call.emit(Square(), ref), axes, keep))
    if order == math.inf:
        return largest_over(call, absolute(call, ref), axes, keep)
    raise call.error(f"order {order:g} is not supported; known are 1, 2 and inf")


@aten("std")
def build_deviation(call: Call) -> Ref:
    """The root of the variance."""
    return _root(call, variance(call))


def _root(call: Call, ref: Ref) -> Ref:
    """Of a value that is not negative: rounding of its bounds below zero is cut off."""
    return call.emit(Sqrt(), relu(call, ref))
