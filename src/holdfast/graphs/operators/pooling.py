"""Average and maximum pooling."""

from __future__ import annotations

import math

import torch

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.conv import Conv, onnx_pads, split_padding
from holdfast.graphs.operators.max_pool import max_pool
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.uneven import ragged_averages


def average_pool(
    call: Call,
    ref: Ref,
    kernel: list[int],
    stride: list[int],
    pads: list[int],
    count_padding: bool,
    divisor: int | None = None,
    ceil: bool = False,
) -> Ref:
    """Append a depthwise convolution with equal weights, or sums over windows that are cut off."""
    if ceil and _is_ragged(ref, kernel, stride, pads):
        return ragged_averages(call, ref, kernel, stride, pads, count_padding, divisor)
    ref, padding = split_padding(call, ref, pads) if count_padding or not any(pads) else (ref, None)
    channels, count = ref.shape[0], divisor or math.prod(kernel)
    weight = torch.full((channels, 1, *kernel), 1.0 / count, dtype=torch.float64)
    ones = (1,) * len(kernel)
    bias = torch.zeros(channels, dtype=torch.float64)
    if padding is not None:
        return call.emit(Conv(weight, bias, tuple(stride), padding, ones, channels), ref)
    cover = Conv(torch.ones(1, 1, *kernel), torch.zeros(1), tuple(stride), (0,) * len(kernel), ones)
    inside = torch.nn.functional.pad(torch.ones(1, 1, *ref.shape[1:]), _widths(pads))
    padded_ref, padding = split_padding(call, ref, pads)
    out = call.emit(Conv(weight, bias, tuple(stride), padding, ones, channels), padded_ref)
    return scale(call, out, count / cover.run(inside)[0].double(), 0.0)


def _widths(pads: list[int]) -> list[int]:
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]


@onnx("MaxPool", "AveragePool")
def onnx_pool(call: Call) -> Ref:
    """ONNX pooling."""
    ref, kernel = call.ref(), call.ints(9, "kernel_shape")
    ones = [1] * len(kernel)
    stride, dilation = call.ints(9, "strides", ones), call.ints(9, "dilations", ones)
    pads = onnx_pads(call, ref, kernel, stride, dilation)
    ceil = bool(call.attributes.get("ceil_mode", 0))
    if call.name == "MaxPool":
        return max_pool(call, ref, kernel, stride, pads, dilation, ceil)
    counted = bool(call.attributes.get("count_include_pad", 0))
    return average_pool(call, ref, kernel, stride, pads, counted, ceil=ceil)


def _is_ragged(ref: Ref, kernel: list[int], stride: list[int], pads: list[int]) -> bool:
    """Whether windows that begin inside would end outside."""
    rank = len(kernel)
    sizes = zip(ref.shape[1:], kernel, stride, strict=True)
    return any((n + pads[i] + pads[i + rank] - k) % s for i, (n, k, s) in enumerate(sizes))


@aten(
    "max_pool2d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool3d_with_indices"
)
def aten_max_pool(call: Call) -> list[Ref] | Ref:
    """ATen maximum pooling; the indices are not available."""
    ref = call.ref()
    rank = len(ref.shape) - 1
    kernel = _full(call.ints(1, "kernel_size"), rank)
    stride = _full(call.ints(2, "stride"), rank) or kernel
    padding = _full(call.ints(3, "padding", [0]), rank)
    dilation = _full(call.ints(4, "dilation", [1]), rank)
    ceil = bool(call.get(5, "ceil_mode", False))
    out = max_pool(call, ref, kernel, stride, padding * 2, dilation, ceil)
    return [out] if "indices" in call.name else out


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def aten_average_pool(call: Call) -> Ref:
    """ATen average pooling."""
    ref = call.ref()
    rank = len(ref.shape) - 1
    kernel = _full(call.ints(1, "kernel_size"), rank)
    stride = _full(call.ints(2, "stride"), rank) or kernel
    padding = _full(call.ints(3, "padding", [0]), rank)
    counted = bool(call.get(5, "count_include_pad", True))
    divisor = call.get(6, "divisor_override")
    ceil = bool(call.get(4, "ceil_mode", False))
    return average_pool(call, ref, kernel, stride, padding * 2, counted, divisor, ceil)


def _full(values: list[int], rank: int) -> list[int]:
    return values * rank if len(values) == 1 else values
