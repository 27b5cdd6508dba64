"""Softmax and its logarithm, relaxed through one sum of exponentials per group.

``log softmax_k(z) = z_k - log sum_j exp(z_j)``, and softmax is the exponential of that. A tangent
below the sum's logarithm, which is convex, and chords above its exponentials give the bounds LSE
of Wei et al., "Convex Bounds on the Softmax Function" (2023, arXiv:2303.01713). As the sum is the
same for all elements of a group, their coefficients are added up before a side is chosen.
"""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Box, Operator, Pulled
from holdfast.graphs.operators.power import Exp
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.shapes import flattened

# Share of the way up the box, at least, of the point where the logarithm's tangent touches, so that
# weights stay small: (1 - e) / (w (e + (1 - e) / 4)) < 2 for all widths w, with e = exp(-w).
_LEAST_SHARE = 0.25
# Of elements that do not count: their exponential is zero.
_NEVER = -1e30


class _Plane(NamedTuple):
    """``weights . z + constant`` for every group: ``(n, r, *in)`` and ``(n, r, .., 1, ..)``."""

    weights: Tensor
    constant: Tensor


@final
@dataclass(frozen=True, slots=True)
class LogSoftmax(Operator):
    """``z_k - log sum_j exp(z_j)`` along ``axis`` (without the batch).

    Its parameter is the point of the box where planes touch, from the lower (0) to the upper end.

    Attributes:
        axis: Of the groups.
        seen: Mask ``(1, *in)`` of the elements that count, 1 or 0; others get zero.
    """

    axis: int
    seen: Tensor | None = None
    n_parameters: ClassVar[int] = 1

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in) -> (n, *in)``."""
        if self.seen is None:
            return xs[0].log_softmax(self.axis + 1)
        z = torch.where(self.seen > 0, xs[0], _NEVER)
        return z.log_softmax(self.axis + 1) * self.seen

    def interval(self, *boxes: Box) -> Box:
        """Each element against the opposite ends of the others."""
        lower, upper = boxes[0]
        low = -_softplus(self._others(upper) - lower)
        high = -_softplus(self._others(lower) - upper)
        return Box(low, high) if self.seen is None else Box(low * self.seen, high * self.seen)

    def start(self, box: Box) -> Tensor:
        """The centre."""
        return torch.full_like(box.lower, 0.5).unsqueeze(0)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Weights add up to 2 at most; the terms of a constant are within nine inputs and seven."""
        z = boxes[0].magnitude()
        largest = z.amax(self.axis + 1, keepdim=True) + math.log(z.shape[self.axis + 1])
        return z + 10 * (1 + largest)

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Exact in ``z_k``; the sum by its tangent or by chords, as its coefficient's sign says."""
        box = Box(boxes[0].lower.unsqueeze(1), boxes[0].upper.unsqueeze(1))
        share = self.start(box)[0] if parameters is None else parameters[0]
        if self.seen is not None:
            A = A * self.seen.unsqueeze(1)
        total = A.sum(self.axis + 2, keepdim=True)
        below, above = self._below(box, share), self._above(box, share)
        rising = total > 0
        weights = torch.where(rising, above.weights, below.weights)
        constant = total * torch.where(rising, above.constant, below.constant)
        return Pulled((A - total * weights,), -flattened(constant, 2).sum(2))

    def _below(self, box: Box, share: Tensor) -> _Plane:
        """The tangent of the logarithm of the sum, which is convex."""
        point = self._hidden(box.lower + share * (box.upper - box.lower))
        axis = self.axis + 2
        value, weights = point.logsumexp(axis, keepdim=True), point.softmax(axis)
        return _Plane(weights, value - (weights * point).sum(axis, keepdim=True))

    def _above(self, box: Box, share: Tensor) -> _Plane:
        """Chords of the exponentials, and a tangent of the logarithm of their sum."""
        axis = self.axis + 2
        top = self._hidden(box.upper).amax(axis, keepdim=True)
        low, high = self._hidden(box.lower - top), self._hidden(box.upper - top)
        width = high - low
        small = width.clamp(torch.finfo(width.dtype).eps, 1.0)
        rise = torch.where(width < 1, low.exp() * small.expm1(), high.exp() - low.exp())
        slope = rise / torch.maximum(width, small)
        intercept = low.exp() - slope * low
        point = low + share.clamp(min=_LEAST_SHARE) * width
        centre = (slope * point + intercept).sum(axis, keepdim=True)
        # log s <= log c + s / c - 1 for any c > 0.
        weights = slope / centre
        constant = centre.log() - 1 + intercept.sum(axis, keepdim=True) / centre
        return _Plane(weights, constant + top * (1 - weights.sum(axis, keepdim=True)))

    def _hidden(self, z: Tensor) -> Tensor:
        """Elements that do not count so far below the others that their exponential is zero."""
        if self.seen is None:
            return z
        return torch.where(self.seen.unsqueeze(1) > 0, z, _NEVER)

    def _others(self, z: Tensor) -> Tensor:
        """``log sum_{j != k} exp(z_j)``, ``(n, *in)``."""
        axis = self.axis + 1
        if self.seen is not None:
            z = torch.where(self.seen > 0, z, _NEVER)
        none = torch.full_like(z.narrow(axis, 0, 1), _NEVER)
        size = z.shape[axis] - 1
        before = torch.cat([none, z.narrow(axis, 0, size).logcumsumexp(axis)], axis)
        behind = z.narrow(axis, 1, size).flip(axis).logcumsumexp(axis).flip(axis)
        return torch.logaddexp(before, torch.cat([behind, none], axis))


def _softplus(t: Tensor) -> Tensor:
    """``log(1 + exp(t))`` without the library's cut-off."""
    return torch.logaddexp(torch.zeros_like(t), t)


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
    if "og" in call.name:
        return call.emit(LogSoftmax(position), ref)
    return softmax(call, ref, position)


def softmax(call: Call, ref: Ref, position: int, seen: Tensor | None = None) -> Ref:
    """Append the softmax over an axis (without the batch).

    ``seen`` is a mask that broadcasts to ``(1, *ref.shape)``: elements outside get nothing.
    """
    if seen is None:
        return call.emit(Exp(), call.emit(LogSoftmax(position), ref))
    seen = seen.expand(1, *ref.shape).double()
    share = call.emit(Exp(), call.emit(LogSoftmax(position, seen), ref))
    return scale(call, share, seen, 0.0)
