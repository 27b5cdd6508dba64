"""Products, quotients and negation with constants; of two variables see ``product``."""

from __future__ import annotations

from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.scale import scale


@onnx("Neg")
@aten("neg")
def negate(call: Call) -> Ref:
    """``-z``."""
    return scale(call, call.ref(), -1.0, 0.0)


def as_factor(value: object) -> Tensor | float:
    """A constant factor, in float64 where it is a Python number."""
    return value if isinstance(value, Tensor) else float(value)  # type: ignore[arg-type]
