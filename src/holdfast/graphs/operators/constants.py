"""Constants that only take their shape from a variable."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Value, aten, onnx


@aten("zeros_like", "ones_like", "full_like")
def like(call: Call) -> Tensor:
    """In the shape of one sample, with a batch axis of one."""
    fill = {"zeros_like": 0.0, "ones_like": 1.0}.get(call.name)
    return torch.full((1, *call.ref().shape), float(call.args[1]) if fill is None else fill)


@aten("new_zeros", "new_ones", "new_full")
def new(call: Call) -> Tensor:
    """In a given shape."""
    fill = {"new_zeros": 0.0, "new_ones": 1.0}.get(call.name)
    return torch.full(tuple(call.ints(1, "size")), float(call.args[2]) if fill is None else fill)


@onnx("CastLike")
def cast_like(call: Call) -> Value:
    """The value itself: types are of no matter here."""
    return call.args[0]
