"""Softmax and its logarithm, formed from differences so that no product is needed.

``softmax_i = 1 / sum_j exp(z_j - z_i)`` takes one exponential, one sum and one reciprocal.
"""

from __future__ import annotations

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.power import Exp, Log, Reciprocal
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sum import reduce_sum


@onnx("Softmax", "LogSoftmax")
@aten("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax")
def build(call: Call) -> Ref:
    """Over one axis."""
    ref = call.ref()
    axis = int(call.get(1, "axis" if call.opset else "dim", -1))
    if call.opset and "axis" not in call.attributes and call.opset < 13:
        axis = 1
    position = call.axis(axis, ref)
    if 0 < call.opset < 13 and position != len(ref.shape) - 1:
        raise call.error(
            "before opset 13, softmax over flattened axes is supported for the last axis only"
        )
    s = ref.shape
    rows = reshape(call, ref, (*s[:position], 1, *s[position:]))
    columns = reshape(call, ref, (*s[: position + 1], 1, *s[position + 1 :]))
    powers = call.emit(Exp(), add(call, rows, columns, -1))
    total = reduce_sum(call, powers, [position + 1], keep=False)
    if "og" in call.name:
        return scale(call, call.emit(Log(), total), -1.0, 0.0)
    return call.emit(Reciprocal(), total)
