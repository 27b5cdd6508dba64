"""Piecewise linear kin of the rectifier, all expressed by rectifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.maximum import maximum
from holdfast.graphs.operators.relu import relu
from holdfast.graphs.operators.scale import scale


def leaky(call: Call, ref: Ref, slope: Tensor | float) -> Ref:
    """Append ``slope z + (1 - slope) relu(z)``."""
    slope = torch.as_tensor(slope, dtype=torch.float64)
    return add(call, scale(call, ref, slope, 0.0), scale(call, relu(call, ref), 1 - slope, 0.0))


@onnx("LeakyRelu", "PRelu")
@aten("leaky_relu", "prelu", "_prelu_kernel", "rrelu")
def build_leaky(call: Call) -> Ref:
    """Leaky rectifiers; PReLU slopes are per channel, a random one takes its mean slope."""
    ref = call.ref()
    if call.name == "rrelu":
        ends = float(call.get(1, "lower", 1 / 8)), float(call.get(2, "upper", 1 / 3))
        return leaky(call, ref, sum(ends) / 2)
    if call.name == "LeakyRelu":
        return leaky(call, ref, float(call.attributes.get("alpha", 0.01)))
    if call.name == "leaky_relu":
        return leaky(call, ref, float(call.get(1, "negative_slope", 0.01)))
    slope = call.constant(1)
    assert slope is not None
    if call.name == "prelu" and slope.dim() == 1:
        slope = slope.reshape(-1, *[1] * (len(ref.shape) - 1))
    return leaky(call, ref, slope[0] if slope.dim() > len(ref.shape) else slope)


def clamp(call: Call, ref: Ref, low: Tensor | float | None, high: Tensor | float | None) -> Ref:
    """Append ``min(max(z, low), high)``."""
    if low is not None:
        ref = maximum(call, ref, torch.as_tensor(low, dtype=torch.float64))
    if high is not None:
        ref = maximum(call, ref, torch.as_tensor(high, dtype=torch.float64), -1)
    return ref


@onnx("Clip")
@aten("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6")
def build_clamp(call: Call) -> Ref:
    """Clamps to constants on either side."""
    ref = call.ref()
    if call.name == "relu6":
        return clamp(call, ref, 0.0, 6.0)
    if call.name == "clamp_max":
        return clamp(call, ref, None, call.constant(1))
    low, high = call.constant(1, "min"), call.constant(2, "max")
    if call.name == "hardtanh":
        low = torch.tensor(call.get(1, "min_val", -1.0))
        high = torch.tensor(call.get(2, "max_val", 1.0))
    return clamp(call, ref, low, high)


@onnx("HardSigmoid", "HardSwish")
@aten("hardsigmoid", "hardswish")
def build_hard(call: Call) -> Ref:
    """``clip(z / 6 + 1 / 2, 0, 1)`` (ONNX: given slope), times ``z`` for the swish."""
    ref = call.ref()
    alpha, beta = 1 / 6, 0.5
    if call.name == "HardSigmoid":
        alpha, beta = (
            float(call.attributes.get("alpha", 0.2)),
            float(call.attributes.get("beta", 0.5)),
        )
    gate = clamp(call, scale(call, ref, alpha, beta), 0.0, 1.0)
    if call.name in ("HardSigmoid", "hardsigmoid"):
        return gate
    from holdfast.graphs.operators.product import multiply

    return multiply(call, ref, gate)


def absolute(call: Call, ref: Ref) -> Ref:
    """Append ``2 relu(z) - z``."""
    return add(call, scale(call, relu(call, ref), 2.0, 0.0), ref, -1)


@onnx("Abs")
@aten("abs")
def build_abs(call: Call) -> Ref:
    """The absolute value."""
    return absolute(call, call.ref())
