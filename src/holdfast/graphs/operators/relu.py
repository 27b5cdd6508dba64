"""The rectifier, ``max(z, 0)``."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Activation, Box, Lines, dot


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


class ChosenSlopes(torch.autograd.Function):
    """``pull_lines`` for rectifiers whose lower slopes are sought, with gradients for these and A.

    Written out as one step forward and one backward, which takes half the passes over memory.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, A: Tensor, chosen: Tensor, lines: Lines, unstable: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coefficients ``(n, k, *shape)`` and constants ``(n, k)``.

        Args:
            ctx: What the step backward needs.
            A: Coefficients ``(n, k, *shape)``.
            chosen: Lower slopes ``(n, k, *shape)``.
            lines: Lines ``(n, 1, *shape)``, whose lower slope is 0 where it is free.
            unstable: 1 where the slopes count, 0 elsewhere ``(n, 1, *shape)``.
        """
        assert lines.upper_intercept is not None
        # Upper slopes, and where A is positive the difference to the lower ones added.
        less = torch.addcmul(lines.lower_slope - lines.upper_slope, chosen, unstable)
        positive = A.sign().clamp_(min=0.0)
        slope = torch.addcmul(lines.upper_slope, positive, less)
        ctx.save_for_backward(A, positive, slope, unstable, lines.upper_intercept)
        return A * slope, dot(A.clamp(max=0.0), lines.upper_intercept)

    @staticmethod
    def backward(ctx: Any, coefficients: Tensor, constant: Tensor) -> Any:  # type: ignore[override]
        """Gradients of ``A`` and of the slopes."""
        A, positive, slope, unstable, intercept = ctx.saved_tensors
        share = constant.reshape(*constant.shape, *[1] * (A.dim() - 2)) * intercept
        before = share.addcmul_(share, positive, value=-1.0).addcmul_(slope, coefficients)
        chosen = (A * coefficients).mul_(positive).mul_(unstable)
        return before, chosen, None, None


def relu(call: Call, ref: Ref) -> Ref:
    """Append a rectifier."""
    return call.emit(ReLU(), ref)


@onnx("Relu")
@aten("relu", "relu_")
def build(call: Call) -> Ref:
    """Elementwise."""
    return relu(call, call.ref())
