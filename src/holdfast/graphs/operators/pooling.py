"""Average and maximum pooling, adaptive and global kinds included."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.conv import Conv, onnx_pads, split_padding
from holdfast.graphs.operators.max_pool import max_pool
from holdfast.graphs.operators.maximum import MaxOver
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sum import reduce_sum


def _largest(call: Call, windows: Ref) -> Ref:
    out = call.emit(MaxOver(len(windows.shape) - 1), windows)
    return reshape(call, out, out.shape[:-1])


def average_pool(
    call: Call,
    ref: Ref,
    kernel: list[int],
    stride: list[int],
    pads: list[int],
    count_padding: bool,
    divisor: int | None = None,
) -> Ref:
    """Append a depthwise convolution with equal weights."""
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
    _refuse_ragged(call, ref, kernel, stride, pads, ceil)
    return average_pool(
        call, ref, kernel, stride, pads, bool(call.attributes.get("count_include_pad", 0))
    )


def _refuse_ragged(
    call: Call, ref: Ref, kernel: list[int], stride: list[int], pads: list[int], ceil: bool
) -> None:
    rank = len(kernel)
    spans = [
        (size + pads[i] + pads[i + rank] - k) % s
        for i, (size, k, s) in enumerate(zip(ref.shape[1:], kernel, stride, strict=True))
    ]
    if ceil and any(spans):
        raise call.error("average pooling with ceil_mode and incomplete windows is not supported")


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
    _refuse_ragged(call, ref, kernel, stride, padding * 2, bool(call.get(4, "ceil_mode", False)))
    counted = bool(call.get(5, "count_include_pad", True))
    divisor = call.get(6, "divisor_override")
    return average_pool(call, ref, kernel, stride, padding * 2, counted, divisor)


def _full(values: list[int], rank: int) -> list[int]:
    return values * rank if len(values) == 1 else values


@aten("adaptive_avg_pool1d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def adaptive_average(call: Call) -> Ref:
    """Average pooling to a given size."""
    ref = call.ref()
    size = call.ints(1, "output_size")
    if all(s == 1 for s in size):
        return reduce_sum(call, ref, range(1, len(ref.shape)), keep=True, mean=True)
    if any(n % s for n, s in zip(ref.shape[1:], size, strict=True)):
        raise call.error(f"output size {size} does not divide the input {ref.shape[1:]}")
    kernel = [n // s for n, s in zip(ref.shape[1:], size, strict=True)]
    return average_pool(call, ref, kernel, kernel, [0] * (2 * len(kernel)), True)


@onnx("GlobalMaxPool")
def global_max(call: Call) -> Ref:
    """Largest position of each channel."""
    ref = call.ref()
    flat = reshape(call, ref, (ref.shape[0], math.prod(ref.shape[1:])))
    return reshape(call, _largest(call, flat), (ref.shape[0], *[1] * (len(ref.shape) - 1)))


@onnx("ReduceMax", "ReduceMin")
@aten("amax", "amin")
def reduce_max(call: Call) -> Ref:
    """Largest or smallest element over axes."""
    ref = call.ref()
    smallest = call.name in ("ReduceMin", "amin")
    given = call.ints(1, "axes" if call.opset else "dim")
    axes = [call.axis(a, ref) for a in given] or list(range(len(ref.shape)))
    keep = bool(call.attributes.get("keepdims", 1) if call.opset else call.get(2, "keepdim", False))
    rest = [a for a in range(len(ref.shape)) if a not in axes]
    turned = scale(call, ref, -1.0, 0.0) if smallest else ref
    moved = call.move(lambda p: _last(p, rest, axes), turned)
    out = _largest(call, moved)
    shape = [1 if i in axes else s for i, s in enumerate(ref.shape) if keep or i not in axes]
    out = reshape(call, out, tuple(shape))
    return scale(call, out, -1.0, 0.0) if smallest else out


def _last(p: Tensor, rest: list[int], axes: list[int]) -> Tensor:
    order = [0, *(a + 1 for a in rest), *(a + 1 for a in axes)]
    return p.permute(order).flatten(1 + len(rest))
