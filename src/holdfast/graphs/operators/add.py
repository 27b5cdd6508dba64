"""Sums and differences, of two variables or with a constant."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled, sum_to
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.window import Window


@final
@dataclass(frozen=True, slots=True)
class Add(Affine):
    """``x + y``, or ``x - y`` with ``sign = -1``, broadcasting."""

    sign: int = 1

    def run(self, *xs: Tensor) -> Tensor:
        """Broadcasts over one sample's axes."""
        x, y = _aligned(*xs)
        return x + y if self.sign > 0 else x - y

    def interval(self, *boxes: Box) -> Box:
        """Ends add up; a subtracted box is turned round."""
        x, y = boxes
        y = y if self.sign > 0 else Box(-y.upper, -y.lower)
        lower, upper = _aligned(x.lower, y.lower), _aligned(x.upper, y.upper)
        return Box(lower[0] + lower[1], upper[0] + upper[1])

    def magnitude(self, *boxes: Box) -> Tensor:
        """Absolute values add up."""
        x, y = _aligned(boxes[0].magnitude(), boxes[1].magnitude())
        return x + y

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """The same coefficients for both, signed."""
        x, y = (sum_to(A, b.lower.shape[1:]) for b in boxes)
        return Pulled((x, y if self.sign > 0 else -y), None)

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """The same window for both; differences and broadcasting are left to full coefficients."""
        if self.sign < 0 or boxes[0].lower.shape != boxes[1].lower.shape:
            return None
        return window, window.A.new_zeros(window.A.shape[:2])


def _aligned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Equal ranks, so that the batch axes meet."""
    rank = max(x.dim(), y.dim())
    grow = [t.reshape(t.shape[0], *[1] * (rank - t.dim()), *t.shape[1:]) for t in (x, y)]
    return grow[0], grow[1]


@onnx("Add", "Sub", "Sum")
@aten("add", "sub", "rsub")
def build(call: Call) -> Ref:
    """Addition and subtraction, ATen's ``alpha`` included."""
    alpha = call.attributes.get("alpha", 1)
    sign = -1 if "ub" in call.name else 1
    args = list(call.args)
    if call.name == "rsub":
        args.reverse()
    result = args[0]
    for other in args[1:]:
        result = _add(call, result, other, sign * alpha)
    return result


def _add(call: Call, x: object, y: object, weight: float) -> Ref:
    if isinstance(x, Ref) and isinstance(y, Ref):
        if abs(weight) != 1:
            y = scale(call, y, abs(weight), 0.0)
        return call.emit(Add(1 if weight > 0 else -1), x, y)
    if isinstance(x, Ref):
        return scale(call, x, 1.0, y * weight)  # type: ignore[operator]
    if isinstance(y, Ref):
        return scale(call, y, float(weight), x)  # type: ignore[arg-type]
    raise call.error("has no argument that depends on the input")


def add(call: Call, x: Ref, y: Ref, sign: int = 1) -> Ref:
    """Append ``x + sign y``."""
    return call.emit(Add(sign), x, y)
