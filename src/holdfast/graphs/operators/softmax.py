"""Softmax and its logarithm, formed from differences so that no product is needed.

``softmax_i = 1 / sum_j exp(z_j - z_i)`` takes one exponential, one sum and one reciprocal.
"""

# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.power import Exp, Log, Reciprocal
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sum import reduce_sum


@final
@dataclass(frozen=True, slots=True)
class Gaps(Affine):
    """``z_j - z_i`` for all pairs along ``axis`` (without the batch): ``(.., j, i, ..)``.

    One operator, as intervals must know that an element differs from itself by nothing.
    """

    axis: int
    refines_input: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, .., k, ..) -> (n, .., k, k, ..)``."""
        return xs[0].unsqueeze(self.axis + 2) - xs[0].unsqueeze(self.axis + 1)

    def interval(self, *boxes: Box) -> Box:
        """Ends against opposite ends, zero where both are the same element."""
        lower, upper = boxes[0]
        behind, ahead = self.axis + 2, self.axis + 1
        low = lower.unsqueeze(behind) - upper.unsqueeze(ahead)
        high = upper.unsqueeze(behind) - lower.unsqueeze(ahead)
        other = self._other(lower)
        return Box(low * other, high * other)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Absolute values add up."""
        largest = boxes[0].magnitude()
        return largest.unsqueeze(self.axis + 2) + largest.unsqueeze(self.axis + 1)

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Sums over partners, signed."""
        behind, ahead = self.axis + 3, self.axis + 2
        return Pulled((A.sum(behind) - A.sum(ahead),), None)

    def _other(self, z: Tensor) -> Tensor:
        """One for different elements, ``(k, k, 1, ..)``."""
        size = z.shape[self.axis + 1]
        other = 1 - torch.eye(size, dtype=z.dtype, device=z.device)
        return other.reshape(size, size, *[1] * (z.dim() - self.axis - 2))


@onnx("Softmax", "LogSoftmax")
@aten("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax")
def build(call: Call) -> Ref:
    """Over one axis."""
    ref = call.ref()
    axis = int(call.get(1, "axis" if call.opset else "dim", -1))
    if call.opset and "axis" not in call.attributes and call.opset < 13:
        axis = 1
    position = call.axis(axis, ref)
    if 0 < call.opset < 13 and position != len(ref.shape) - 1:
        raise call.error(
            "before opset 13, softmax over flattened axes is supported for the last axis only"
        )
    return softmax(call, ref, position, logarithm="og" in call.name)


def softmax(
    call: Call, ref: Ref, position: int, seen: Tensor | None = None, logarithm: bool = False
) -> Ref:
    """Append the softmax over an axis (without the batch), or its logarithm.

    ``seen`` is a mask that broadcasts to ``(1, *ref.shape)``: elements outside get nothing.
    """
    powers = call.emit(Exp(), call.emit(Gaps(position), ref))
    if seen is not None:
        seen = seen.expand(1, *ref.shape).double()
        powers = scale(call, powers, seen.unsqueeze(position + 2), 0.0)
    total = reduce_sum(call, powers, [position], keep=False)
    if logarithm:
        return scale(call, call.emit(Log(), total), -1.0, 0.0)
    share = call.emit(Reciprocal(), total)
    return share if seen is None else scale(call, share, seen, 0.0)
