"""Layer, group and instance norm, whose statistics come from the sample itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.power import Rsqrt, Square
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sum import reduce_sum


def normalise(call: Call, ref: Ref, axes: Sequence[int], eps: float) -> Ref:
    """Append ``(z - mean) / sqrt(var + eps)`` over axes counted without the batch."""
    mean = reduce_sum(call, ref, axes, keep=True, mean=True)
    centred = add(call, ref, mean, -1)
    variance = reduce_sum(call, call.emit(Square(), centred), axes, keep=True, mean=True)
    return multiply(call, centred, call.emit(Rsqrt(), scale(call, variance, 1.0, eps)))


def _affine(call: Call, ref: Ref, weight: Tensor | None, bias: Tensor | None) -> Ref:
    if weight is None and bias is None:
        return ref
    return scale(call, ref, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


@aten("native_layer_norm", "layer_norm")
def layer_norm(call: Call) -> list[Ref] | Ref:
    """Over the trailing axes."""
    ref = call.ref()
    count = len(call.ints(1, "normalized_shape"))
    rank = len(ref.shape)
    out = normalise(call, ref, range(rank - count, rank), float(call.get(4, "eps", 1e-5)))
    out = _affine(call, out, call.constant(2, "weight"), call.constant(3, "bias"))
    return [out] if call.name == "native_layer_norm" else out


@onnx("LayerNormalization")
def onnx_layer_norm(call: Call) -> Ref:
    """Over the axes from ``axis`` on."""
    ref = call.ref()
    first = call.axis(int(call.attributes.get("axis", -1)), ref)
    out = normalise(
        call, ref, range(first, len(ref.shape)), float(call.attributes.get("epsilon", 1e-5))
    )
    bias = call.constant(2) if len(call.args) > 2 else None
    return _affine(call, out, call.constant(1), bias)


def _grouped(
    call: Call, ref: Ref, groups: int, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Ref:
    shape = (groups, ref.shape[0] // groups * math.prod(ref.shape[1:]))
    out = reshape(call, normalise(call, reshape(call, ref, shape), [1], eps), ref.shape)
    per_channel = (-1, *[1] * (len(ref.shape) - 1))
    grown = [None if c is None else c.reshape(per_channel) for c in (weight, bias)]
    return _affine(call, out, grown[0], grown[1])


@aten("native_group_norm", "group_norm")
def group_norm(call: Call) -> list[Ref] | Ref:
    """Over groups of channels."""
    ref = call.ref()
    if call.name == "group_norm":
        groups, weight, bias, eps = (
            int(call.args[1]),
            call.constant(2),
            call.constant(3),
            float(call.get(4, "eps", 1e-5)),
        )
        return _grouped(call, ref, groups, eps, weight, bias)
    return [
        _grouped(
            call, ref, int(call.args[6]), float(call.args[7]), call.constant(1), call.constant(2)
        )
    ]


@onnx("InstanceNormalization")
def instance_norm(call: Call) -> Ref:
    """Over the positions of each channel."""
    ref = call.ref()
    eps = float(call.attributes.get("epsilon", 1e-5))
    return _grouped(call, ref, ref.shape[0], eps, call.constant(1), call.constant(2))


@aten("instance_norm")
def aten_instance_norm(call: Call) -> Ref:
    """Over the positions of each channel, from the sample's own statistics."""
    if not call.args[5]:
        raise call.error("stored statistics are not supported here; use batch norm")
    ref = call.ref()
    return _grouped(
        call, ref, ref.shape[0], float(call.args[7]), call.constant(1), call.constant(2)
    )


@aten("var")
def variance(call: Call) -> Ref:
    """Variance over axes."""
    ref = call.ref()
    axes = [call.axis(a, ref) for a in call.ints(1, "dim")]
    correction = call.attributes.get("correction", 1)
    count = math.prod(ref.shape[a] for a in axes)
    mean = reduce_sum(call, ref, axes, keep=True, mean=True)
    squares = call.emit(Square(), add(call, ref, mean, -1))
    keep = bool(call.attributes.get("keepdim", False))
    total = reduce_sum(call, squares, axes, keep)
    return scale(call, total, torch.tensor(1.0 / (count - correction), dtype=torch.float64), 0.0)
