"""Batch norm with stored statistics: an affine map per channel."""

from __future__ import annotations

from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.scale import scale


def _normalise(
    call: Call, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Ref:
    ref = call.ref()
    shape = (-1, *[1] * (len(ref.shape) - 1))
    factor = (var.double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.double()
    offset = -mean.double() * factor
    if bias is not None:
        offset = offset + bias.double()
    return scale(call, ref, factor.reshape(shape), offset.reshape(shape))


@onnx("BatchNormalization")
def onnx_batch_norm(call: Call) -> Ref:
    """Inference form."""
    if call.attributes.get("training_mode", 0):
        raise call.error("is in training mode; export the model in evaluation mode")
    weight, bias, mean, var = (call.constant(i) for i in range(1, 5))
    assert mean is not None
    assert var is not None
    return _normalise(call, weight, bias, mean, var, float(call.attributes.get("epsilon", 1e-5)))


@aten("_native_batch_norm_legit_no_training", "batch_norm")
def aten_batch_norm(call: Call) -> list[Ref]:
    """Evaluation form."""
    weight, bias, mean, var = (call.constant(i) for i in range(1, 5))
    if mean is None or var is None or (call.name == "batch_norm" and call.args[5]):
        raise call.error("has no stored statistics; samples of a batch would depend on each other")
    eps = float(
        call.args[6] if call.name == "_native_batch_norm_legit_no_training" else call.args[7]
    )
    out = _normalise(call, weight, bias, mean, var, eps)
    return [out] if call.name != "batch_norm" else out  # type: ignore[return-value]
