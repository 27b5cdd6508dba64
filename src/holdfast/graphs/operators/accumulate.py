"""Running sums and products."""

from __future__ import annotations

import torch

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.take import take


@onnx("CumSum")
@aten("cumsum")
def build_running_sum(call: Call) -> Ref:
    """A triangular matrix along one axis."""
    ref = call.ref()
    if call.opset and (call.attributes.get("exclusive") or call.attributes.get("reverse")):
        raise call.error("exclusive and reverse sums are not supported")
    axis = call.axis(call.ints(1, "axis" if call.opset else "dim")[0], ref)
    size = ref.shape[axis]
    last = call.move(lambda p: p.movedim(axis + 1, -1), ref)
    weight = torch.ones(size, size, dtype=torch.float64).tril()
    out = call.emit(Linear(weight, torch.zeros(size, dtype=torch.float64)), last)
    return call.move(lambda p: p.movedim(-1, axis + 1), out)


@onnx("ReduceProd")
@aten("prod")
def build_product(call: Call) -> Ref:
    """Factor by factor along one axis."""
    ref = call.ref()
    axes = [call.axis(a, ref) for a in call.ints(1, "axes" if call.opset else "dim")]
    if len(axes) != 1:
        raise call.error("products over several axes are not supported; take one after another")
    keep = bool(call.attributes.get("keepdims", 1) if call.opset else call.get(2, "keepdim", False))
    positions = torch.arange(torch.Size(ref.shape).numel()).reshape(ref.shape)
    first, *rest = (take(call, ref, p) for p in positions.unbind(axes[0]))
    for factor in rest:
        first = multiply(call, first, factor)
    shape = tuple(1 if i == axes[0] else s for i, s in enumerate(ref.shape))
    return reshape(call, first, shape) if keep else first
