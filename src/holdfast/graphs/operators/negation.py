"""Negation."""

from __future__ import annotations

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.scale import scale


@onnx("Neg")
@aten("neg")
def negate(call: Call) -> Ref:
    """``-z``."""
    return scale(call, call.ref(), -1.0, 0.0)
