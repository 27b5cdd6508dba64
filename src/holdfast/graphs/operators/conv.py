"""Convolutions in one to three dimensions, grouped and dilated."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.conv_transpose import transposed
from holdfast.graphs.operators.movement import padded
from holdfast.graphs.window import Window

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Channels of all phases of a stride up to which they are computed side by side.
SHUFFLED = 16
# What a matrix in place of a convolution may cost: products with zeros for each with a weight, and
# elements.
WASTE_SINGLE, WASTE_DOUBLE = 8.0, 3.0
LARGEST = 1 << 18
# Elements of patches laid out at once, so that they stay in caches.
_PATCHES = 1 << 17
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
        constant = A.flatten(3).sum(3) @ self.bias
        if self._is_plain(flat):
            first = (self.padding[0], self.padding[1])
            pulled = self._pull_plain(flat, first, (shape[1], shape[2]))
            return Pulled((pulled.reshape(*A.shape[:2], *shape),), constant)
        if self._is_shuffled(flat):
            pulled = _Shuffled.apply(flat, self, (shape[1], shape[2]))
            return Pulled((pulled.reshape(*A.shape[:2], *shape),), constant)
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
        return Pulled((pulled.reshape(*A.shape[:2], *shape),), constant)

    def _is_shuffled(self, A: Tensor) -> bool:
        """Whether the library's transposed convolution is slow: strides, to few channels."""
        return (
            A.dtype == torch.float32
            and A.device.type == "cpu"
            and len(self.stride) == 2
            and self.stride[0] == self.stride[1] > 1
            and (*self.dilation, self.groups) == (1, 1, 1)
            and self.weight.shape[1] * self.stride[0] ** 2 <= SHUFFLED
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
        )

    def pull_shuffled(self, A: Tensor, size: tuple[int, int]) -> Tensor:
        """``(b, out, h, w) -> (b, in, *size)``: each phase of the stride as channels of its own."""
        step, (n_out, n_in, *kernel) = self.stride[0], self.weight.shape
        taps = [-(-k // step) for k in kernel]
        (up, left), (high, wide) = ([t * step - k for t, k in zip(taps, kernel, strict=True)], taps)
        weight = F.pad(self.weight, (0, left, 0, up))
        weight = weight.reshape(n_out, n_in, high, step, wide, step).flip(2, 4)
        weight = weight.permute(1, 3, 5, 0, 2, 4).reshape(-1, n_out, high, wide)
        full = F.pixel_shuffle(F.conv2d(A, weight, padding=(high - 1, wide - 1)), step)
        (y, x), (h, w) = self.padding, size
        missing = max(0, y + h - full.shape[2]), max(0, x + w - full.shape[3])
        if any(missing):  # inputs that no output reads
            full = F.pad(full, (0, missing[1], 0, missing[0]))
        return full[:, :, y : y + h, x : x + w]

    def _is_plain(self, A: Tensor) -> bool:
        """Whether one product of matrices is quicker than the library, which is slow in float64."""
        return (
            A.dtype == torch.float64
            and A.device.type == "cpu"
            and len(self.stride) == 2
            and (*self.stride, *self.dilation, self.groups) == (1,) * 5
            and not (torch.is_grad_enabled() and (A.requires_grad or self.weight.requires_grad))
        )

    def _pull_plain(self, A: Tensor, first: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """``(b, out, h, w) -> (b, in, *size)``: patches of the coefficients times the weights.

        ``first`` is where the result begins in the full transposed convolution.
        """
        kernel, (h, w) = self.weight.shape[2:], size
        grown = A.new_zeros(len(A), h + kernel[0] - 1, w + kernel[1] - 1, A.shape[1])
        top, left = (k - 1 - f for k, f in zip(kernel, first, strict=True))
        inner, rows, columns = _placed(grown, top, left, A.shape[2:])
        inner.copy_(A[:, :, rows, columns].permute(0, 2, 3, 1))
        step = grown.stride()
        patches = grown.as_strided(
            (len(A), h, w, *kernel, A.shape[1]), (*step[:3], step[1], step[2], step[3])
        )
        weight = self.weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, self.weight.shape[1])
        pulled = A.new_empty(len(A), h * w, weight.shape[1])
        step = max(1, _PATCHES // (h * w * len(weight)))
        for part, out in zip(patches.split(step), pulled.split(step), strict=True):
            torch.mm(part.reshape(-1, len(weight)), weight, out=out.view(-1, weight.shape[1]))
        return pulled.transpose(1, 2).reshape(len(A), -1, h, w)

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """Transposed convolution of the windows alone; what falls on padding is dropped."""
        A = self._spread(window.A.flatten(0, 1))
        A = A.reshape(*window.A.shape[:2], *A.shape[1:])
        stride, padding = (window.origin.new_tensor(v) for v in (self.stride, self.padding))
        pulled = Window(A, window.origin * stride - padding, window.sample)
        pulled = pulled.located(boxes[0].lower.shape[2:])
        _, inside = pulled.positions(boxes[0].lower.shape[2:])
        constant = window.A.flatten(3).sum(3) @ self.bias
        return pulled._replace(A=A * inside[:, None, None]), constant

    def _grown(self, window: torch.Size) -> tuple[int, ...]:
        """The window of the input that a window of the output reads."""
        return tuple(
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(
                window, self.stride, self.dilation, self.weight.shape[2:], strict=True
            )
        )

    def _multiplies_well(self, A: Tensor) -> bool:
        """Whether one product with a matrix, mostly of zeros, beats the library's small loops."""
        grown = torch.Size(self._grown(A.shape[2:])).numel()
        is_single = A.dtype == torch.float32
        return (
            A.device.type == "cpu"
            and self.groups == 1
            and A.shape[2:].numel() > 1
            and grown
            <= (WASTE_SINGLE if is_single else WASTE_DOUBLE) * self.weight.shape[2:].numel()
            and A.shape[1:].numel() * self.weight.shape[1] * grown <= LARGEST
            and not (is_single and set(self.stride) == {1})
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
        )

    def _matrix(self, window: torch.Size) -> Tensor:
        """The transposed convolution of windows as a matrix ``(out * window, in * grown)``."""
        grown, (n_out, n_in, *kernel) = self._grown(window), self.weight.shape
        matrix = self.weight.new_zeros(n_out, *window, n_in, *grown)
        steps, n = matrix.stride(), len(window)
        # Element (o, y, i, y * stride + k * dilation) is weight (o, i, k).
        along = [
            a + s * b for a, s, b in zip(steps[1 : n + 1], self.stride, steps[n + 2 :], strict=True)
        ]
        taps = [d * b for d, b in zip(self.dilation, steps[n + 2 :], strict=True)]
        places = matrix.as_strided(
            (n_out, *window, n_in, *kernel), (steps[0], *along, steps[n + 1], *taps)
        )
        places.copy_(self.weight.detach().reshape(n_out, *[1] * n, n_in, *kernel))
        return matrix.flatten(n + 1).flatten(0, n)

    def _spread(self, A: Tensor) -> Tensor:
        """Transposed convolution without padding: ``(b, out, *window)`` to larger windows."""
        rank, grown = len(self.stride), self._grown(A.shape[2:])
        if self._multiplies_well(A):
            return (A.flatten(1) @ self._matrix(A.shape[2:])).reshape(len(A), -1, *grown)
        wide = A.dtype == torch.float32 and A.shape[2:].numel() > 1 and set(self.stride) == {1}
        if rank != 2 or self.groups != 1 or wide:
            zeros = (0,) * rank
            args = (self.stride, zeros, zeros, self.groups, self.dilation)
            return _BACKWARD[rank](A, self.weight, None, *args)
        kernel = self.weight.shape[2:]
        one = A.shape[2:].numel() == 1
        if not one and A.shape[1] <= 2 * self.weight.shape[1] and self._is_plain(A):
            return self._pull_plain(A, (0, 0), (grown[0], grown[1]))
        # One product for all windows, as the library's transposed convolution loops over the batch.
        places = A.flatten(2).transpose(1, 2)
        patches = (places @ self.weight.flatten(1)).transpose(1, 2)
        if one and self.dilation == (1, 1):
            return patches.reshape(len(A), self.weight.shape[1], *kernel)
        return F.fold(patches, grown, tuple(kernel), self.dilation, 0, self.stride)


class _Shuffled(torch.autograd.Function):
    """``Conv.pull_shuffled``, whose gradient is the convolution itself."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, op: Conv, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        ctx.op = op
        return op.pull_shuffled(A, size)

    @staticmethod
    def backward(ctx: Any, pulled: Tensor) -> Any:  # type: ignore[override]
        op = ctx.op
        return F.conv2d(pulled, op.weight, None, op.stride, op.padding), None, None


def _placed(grown: Tensor, top: int, left: int, size: torch.Size) -> tuple[Tensor, slice, slice]:
    """The part of ``grown (b, h, w, c)`` under a map of ``size`` put at an offset.

    Offsets may be negative; the slices say which part of the map lies inside.
    """
    (to_y, y), (to_x, x) = (
        (slice(max(0, o), min(n, o + m)), slice(max(0, -o), min(m, n - o)))
        for o, m, n in zip((top, left), size, grown.shape[1:3], strict=True)
    )
    return grown[:, to_y, to_x], y, x


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
    stride, dilation = (
        tuple(_full(call.ints(i, n, [1]), rank)) for i, n in ((3, "stride"), (5, "dilation"))
    )
    given = call.get(4, "padding", [0])
    if isinstance(given, str):
        around = zip(dilation, weight.shape[2:], strict=True)
        total = [d * (k - 1) if given == "same" else 0 for d, k in around]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
        ref, padding = split_padding(call, ref, pads)
    else:
        padding = tuple(_full(call.ints(4, "padding", [0]), rank))
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
