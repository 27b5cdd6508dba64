"""Transposed convolutions in one to three dimensions."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled

_FORWARD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_BACKWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@final
@dataclass(frozen=True, slots=True)
class ConvTranspose(Affine):
    """Transposed convolution; weight ``(in, out / groups, *kernel)``."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        forward = _FORWARD[len(self.stride)]
        return forward(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

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
        """Convolution of the coefficients."""
        shape = boxes[0].lower.shape[1:]
        backward = _BACKWARD[len(self.stride)]
        pulled = backward(
            A.flatten(0, 1),
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        # Output padding can make the plain transpose longer than the input; the rest reads nothing.
        pulled = pulled[(slice(None), slice(None), *(slice(0, s) for s in shape[1:]))]
        return Pulled((pulled.reshape(*A.shape[:2], *shape),), A.flatten(3).sum(3) @ self.bias)


def transposed(
    call: Call,
    ref: Ref,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int,
) -> Ref:
    """Append a transposed convolution."""
    bias = torch.zeros(weight.shape[1] * groups) if bias is None else bias
    op = ConvTranspose(weight, bias, stride, padding, dilation, output_padding, groups)
    return call.emit(op, ref)


@onnx("ConvTranspose")
def onnx_conv_transpose(call: Call) -> Ref:
    """ONNX transposed convolution with symmetric explicit padding."""
    weight = call.constant(1)
    assert weight is not None
    bias = call.constant(2) if len(call.args) > 2 else None
    rank = weight.dim() - 2
    pads = call.ints(9, "pads", [0] * (2 * rank))
    if pads[:rank] != pads[rank:] or call.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise call.error("only symmetric explicit padding is supported")
    ones = [1] * rank
    return transposed(
        call,
        call.ref(),
        weight,
        bias,
        tuple(call.ints(9, "strides", ones)),
        tuple(pads[:rank]),
        tuple(call.ints(9, "dilations", ones)),
        tuple(call.ints(9, "output_padding", [0] * rank)),
        int(call.attributes.get("group", 1)),
    )


@aten("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def aten_conv_transpose(call: Call) -> Ref:
    """ATen's arguments: weight, bias, stride, padding, output padding, groups, dilation."""
    weight = call.constant(1)
    assert weight is not None
    bias = call.constant(2) if len(call.args) > 2 else None
    rank = weight.dim() - 2

    def full(position: int, name: str, default: int) -> tuple[int, ...]:
        values = call.ints(position, name, [default])
        return tuple(values * rank if len(values) == 1 else values)

    return transposed(
        call,
        call.ref(),
        weight,
        bias,
        full(3, "stride", 1),
        full(4, "padding", 0),
        full(7, "dilation", 1),
        full(5, "output_padding", 0),
        int(call.get(6, "groups", 1)),
    )
