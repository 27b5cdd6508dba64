"""Elementwise multiplication by and addition of constants."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.operator import Affine, Box, Pulled, dot
from holdfast.graphs.window import Window

if TYPE_CHECKING:
    from holdfast.graphs.builder import Call, Ref


@final
@dataclass(frozen=True, slots=True)
class Scale(Affine):
    """``factor z + offset``, both broadcast over one sample's shape."""

    factor: Tensor
    offset: Tensor
    is_diagonal: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise, any shape that the constants broadcast to."""
        return xs[0] * self.factor + self.offset

    def interval(self, *boxes: Box) -> Box:
        """Ends change places where the factor is negative."""
        a, b = self.run(boxes[0].lower), self.run(boxes[0].upper)
        return Box(torch.minimum(a, b), torch.maximum(a, b))

    def magnitude(self, *boxes: Box) -> Tensor:
        """``|factor| |z| + |offset|``."""
        return boxes[0].magnitude() * self.factor.abs() + self.offset.abs()

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Scaled coefficients."""
        constant = None
        # On a device, finding out would wait for it.
        if self.offset.device.type != "cpu" or bool(self.offset.any()):
            constant = dot(A, self.offset.expand(1, 1, *A.shape[2:]))
        return Pulled((A * self.factor,), constant)

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """Scaled coefficients; constants are read where the windows are."""
        shape = boxes[0].lower.shape[1:]
        first = window._replace(sample=torch.zeros_like(window.sample))
        factor, offset = (first.gather(c.expand(1, *shape)) for c in (self.factor, self.offset))
        scaled = window._replace(A=window.A * factor.unsqueeze(1))
        return scaled, dot(window.A, offset.unsqueeze(1))


def scale(call: Call, ref: Ref, factor: Tensor | float, offset: Tensor | float) -> Ref:
    """Append ``factor z + offset``; constants come with the framework's batch axis."""
    from holdfast.graphs.operators.take import take

    constants = [_one_sample(call, ref, torch.as_tensor(c)) for c in (factor, offset)]
    shape = torch.broadcast_shapes(ref.shape, *(c.shape for c in constants))
    if shape != ref.shape:
        positions = torch.arange(torch.Size(ref.shape).numel()).reshape(ref.shape)
        ref = take(call, ref, positions.expand(shape))
    return call.emit(Scale(*constants), ref)


def _one_sample(call: Call, ref: Ref, constant: Tensor) -> Tensor:
    """Without its batch axis, in a floating-point type."""
    if not constant.is_floating_point():
        constant = constant.to(torch.float32)
    if constant.dim() == len(ref.shape) + 1:
        if constant.shape[0] != 1:
            raise call.error(f"constant of shape {tuple(constant.shape)} differs by sample")
        constant = constant[0]
    if constant.dim() > len(ref.shape) + 1:
        raise call.error(f"constant of shape {tuple(constant.shape)} has too many axes")
    return constant
