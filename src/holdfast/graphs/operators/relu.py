"""The rectifier, ``max(z, 0)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Activation, Box, Lines


@final
@dataclass(frozen=True, slots=True)
class ReLU(Activation):
    """``max(z, 0)``; its parameter is the slope of the lower line of unstable neurons."""

    n_parameters: ClassVar[int] = 1
    is_rectifier: ClassVar[bool] = True
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].relu()

    def interval(self, *boxes: Box) -> Box:
        """Increasing."""
        return Box(boxes[0].lower.relu(), boxes[0].upper.relu())

    def is_loose(self, box: Box) -> Tensor:
        """Unstable neurons only."""
        return (box.lower < 0) & (box.upper > 0)

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """Upper: the chord. Lower: through the origin, slope 0 or 1 by the smaller area."""
        unstable = (lower < 0) & (upper > 0)
        active = (lower >= 0).to(lower.dtype)
        width = torch.where(unstable, upper - lower, 1.0)
        upper_slope = torch.where(unstable, upper / width, active)
        intercept = torch.where(unstable, -lower * upper_slope, 0.0)
        free = (upper > -lower).to(lower.dtype) if parameters is None else parameters[0]
        return Lines(torch.where(unstable, free, active), None, upper_slope, intercept)

    def start(self, box: Box) -> Tensor:
        """The default lower slopes."""
        return (box.upper > -box.lower).to(box.lower.dtype).unsqueeze(0)

    def branch_point(self, box: Box) -> Tensor:
        """The kink."""
        return torch.zeros_like(box.lower)

    def magnitude(self, *boxes: Box) -> None:
        """Left to the input's node: ``|A| intercept <= |A'| |lower|``."""
        return None


def relu(call: Call, ref: Ref) -> Ref:
    """Append a rectifier."""
    return call.emit(ReLU(), ref)


@onnx("Relu")
@aten("relu", "relu_")
def build(call: Call) -> Ref:
    """Elementwise."""
    return relu(call, call.ref())
