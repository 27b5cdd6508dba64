"""Convolutions in one to three dimensions, grouped and dilated."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.conv_transpose import transposed
from holdfast.graphs.operators.movement import padded
from holdfast.graphs.window import Window

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACKWARD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@final
@dataclass(frozen=True, slots=True)
class Conv(Affine):
    """Convolution; weight ``(out, in / groups, *kernel)``, symmetric zero padding."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        forward = _FORWARD[len(self.stride)]
        return forward(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, in, *spatial) -> (n, out, *spatial)``."""
        return self._apply(xs[0], self.weight, self.bias)

    def interval(self, *boxes: Box) -> Box:
        """Centre and radius."""
        lower, upper = boxes[0]
        centre = self.run((lower + upper) / 2)
        radius = self._apply((upper - lower) / 2, self.weight.abs(), None)
        return Box(centre - radius, centre + radius)

    def magnitude(self, *boxes: Box) -> Tensor:
        """``|W| |z| + |b|``."""
        return self._apply(boxes[0].magnitude(), self.weight.abs(), self.bias.abs())

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Transposed convolution of the coefficients."""
        shape = boxes[0].lower.shape[1:]
        flat = A.flatten(0, 1)
        extra = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                shape[1:],
                flat.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                strict=True,
            )
        ]
        backward = _BACKWARD[len(self.stride)]
        pulled = backward(
            flat, self.weight, None, self.stride, self.padding, extra, self.groups, self.dilation
        )
        return Pulled((pulled.reshape(*A.shape[:2], *shape),), A.flatten(3).sum(3) @ self.bias)

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """Transposed convolution of the windows alone; what falls on padding is dropped."""
        A = self._spread(window.A.flatten(0, 1))
        A = A.reshape(*window.A.shape[:2], *A.shape[1:])
        stride, padding = (window.origin.new_tensor(v) for v in (self.stride, self.padding))
        pulled = Window(A, window.origin * stride - padding, window.sample)
        _, inside = pulled.positions(boxes[0].lower.shape[2:])
        constant = window.A.flatten(3).sum(3) @ self.bias
        return pulled._replace(A=A * inside[:, None, None]), constant

    def _spread(self, A: Tensor) -> Tensor:
        """Transposed convolution without padding: ``(b, out, *window)`` to larger windows."""
        rank = len(self.stride)
        if rank != 2 or self.groups != 1:
            zeros = (0,) * rank
            args = (self.stride, zeros, zeros, self.groups, self.dilation)
            return _BACKWARD[rank](A, self.weight, None, *args)
        # One product for all windows, as the library's transposed convolution loops over the batch.
        places = A.flatten(2).transpose(1, 2)
        patches = (places @ self.weight.flatten(1)).transpose(1, 2)
        kernel = self.weight.shape[2:]
        size = tuple(
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(A.shape[2:], self.stride, self.dilation, kernel, strict=True)
        )
        if A.shape[2:].numel() == 1 and self.dilation == (1, 1):
            return patches.reshape(len(A), self.weight.shape[1], *kernel)
        return F.fold(patches, size, tuple(kernel), self.dilation, 0, self.stride)


@onnx("Conv")
def onnx_conv(call: Call) -> Ref:
    """ONNX convolution with explicit or automatic padding."""
    ref, weight = call.ref(), call.constant(1)
    assert weight is not None
    bias = call.constant(2) if len(call.args) > 2 else None
    rank = weight.dim() - 2
    stride, dilation = call.ints(9, "strides", [1] * rank), call.ints(9, "dilations", [1] * rank)
    pads = onnx_pads(call, ref, list(weight.shape[2:]), stride, dilation)
    ref, padding = split_padding(call, ref, pads)
    bias = torch.zeros(len(weight)) if bias is None else bias
    groups = int(call.attributes.get("group", 1))
    return call.emit(Conv(weight, bias, tuple(stride), padding, tuple(dilation), groups), ref)


def onnx_pads(
    call: Call, ref: Ref, kernel: list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """Beginnings, then ends, of every spatial axis."""
    mode = call.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return call.ints(9, "pads", [0] * (2 * len(kernel)))
    begins, ends = [], []
    for size, k, s, d in zip(ref.shape[1:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def split_padding(
    call: Call, ref: Ref, pads: list[int], value: float = 0.0
) -> tuple[Ref, tuple[int, ...]]:
    """Symmetric padding stays in the convolution; any other becomes a node of its own."""
    rank = len(pads) // 2
    if pads[:rank] == pads[rank:]:
        return ref, tuple(pads[:rank])
    widths: list[int] = []
    for axis in reversed(range(rank)):
        widths += [pads[axis], pads[axis + rank]]
    return padded(call, ref, widths, value), (0,) * rank


@aten("convolution", "conv1d", "conv2d", "conv3d")
def aten_conv(call: Call) -> Ref:
    """ATen convolution, plain or transposed."""
    ref, weight = call.ref(), call.constant(1)
    bias = call.constant(2) if len(call.args) > 2 else None
    assert weight is not None
    rank = weight.dim() - 2
    stride, padding = (
        tuple(_full(call.ints(i, n, [d]), rank))
        for i, n, d in ((3, "stride", 1), (4, "padding", 0))
    )
    dilation = tuple(_full(call.ints(5, "dilation", [1]), rank))
    if call.name == "convolution":
        groups = int(call.args[8])
        if call.args[6]:
            extra = tuple(_full(call.ints(7, "output_padding", [0]), rank))
            return transposed(call, ref, weight, bias, stride, padding, dilation, extra, groups)
    else:
        groups = int(call.get(6, "groups", 1))
    bias = torch.zeros(len(weight)) if bias is None else bias
    return call.emit(Conv(weight, bias, stride, padding, dilation, groups), ref)


def _full(values: list[int], rank: int) -> list[int]:
    return values * rank if len(values) == 1 else values
