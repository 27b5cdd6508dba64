"""The largest of several elements, and of two variables."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Box, Operator, Pulled
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.relu import relu
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.shapes import flattened


@final
@dataclass(frozen=True, slots=True)
class MaxOver(Operator):
    """Largest element along ``axis`` (counted without the batch), which stays with length one."""

    axis: int
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in) -> (n, *in with a one)``."""
        return xs[0].amax(self.axis + 1, keepdim=True)

    def interval(self, *boxes: Box) -> Box:
        """Increasing in every element."""
        return Box(self.run(boxes[0].lower), self.run(boxes[0].upper))

    def is_loose(self, box: Box) -> Tensor:
        """Elements that could be the largest, unless only one can."""
        rivals = box.upper > box.lower.amax(self.axis + 1, keepdim=True)
        return rivals & (rivals.sum(self.axis + 1, keepdim=True) > 1)

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Below: the element with the largest lower bound. Above: see ``_upper_plane``."""
        box = boxes[0]
        axis = self.axis + 1
        best = box.lower.argmax(axis, keepdim=True)
        lower = torch.zeros_like(box.lower).scatter(axis, best, 1.0).unsqueeze(1)
        slopes, intercept = self._upper_plane(box)
        positive, negative = A.clamp(min=0), A.clamp(max=0)
        coefficients = positive * lower + negative * slopes.unsqueeze(1)
        constant = flattened(negative * intercept.unsqueeze(1), 2).sum(2)
        return Pulled((coefficients,), constant)

    def _upper_plane(self, box: Box) -> tuple[Tensor, Tensor]:
        """A plane above the maximum that reads only the element with the largest upper bound.

        Let ``c`` be the larger of the greatest lower bound and the second greatest upper bound.
        Then ``max z <= max(c, z_j)`` for the leader ``j``, which lies under its chord on ``[l_j,
        u_j]``: ``c + (u_j - c) / (u_j - l_j) (z_j - l_j)``.
        """
        axis = self.axis + 1
        top = box.upper.topk(min(2, box.upper.shape[axis]), axis)
        second = top.values.narrow(axis, -1 + top.values.shape[axis], 1)
        floor = torch.maximum(box.lower.amax(axis, keepdim=True), second)
        if top.values.shape[axis] == 1:
            floor = box.lower
        leader = torch.zeros_like(box.lower).scatter(axis, top.indices.narrow(axis, 0, 1), 1.0)
        low, high = box.lower, box.upper
        # The leader alone is the maximum where no rival reaches its lower bound.
        alone = (low >= second) & (leader > 0)
        slope = (high - floor).clamp(min=0) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        slope = torch.where(alone, 1.0, slope.clamp(max=1.0)) * leader
        anchored = torch.where(alone, 0.0, floor - slope * low) * leader
        return slope, anchored.sum(axis, keepdim=True)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Slopes are at most one; the anchor adds two more values."""
        return 4 * boxes[0].magnitude().amax(self.axis + 1, keepdim=True)


def maximum(call: Call, x: Ref | Tensor, y: Ref | Tensor, sign: int = 1) -> Ref:
    """Append ``max(x, y) = y + relu(x - y)``, or the minimum with ``sign = -1``."""
    if not isinstance(y, Tensor) and isinstance(x, Tensor):
        x, y = y, x
    assert isinstance(x, Ref)
    if isinstance(y, Ref):
        gap = relu(call, add(call, x, y, -1) if sign > 0 else add(call, y, x, -1))
        return add(call, y, gap, sign)
    gap = relu(call, scale(call, x, float(sign), -sign * y))
    return scale(call, gap, float(sign), y)


@onnx("Max", "Min")
@aten("maximum", "minimum")
def build(call: Call) -> Ref:
    """Pairwise over all arguments."""
    sign = 1 if call.name in ("Max", "maximum") else -1
    result = call.args[0]
    for other in call.args[1:]:
        result = maximum(call, result, other, sign)
    return result
