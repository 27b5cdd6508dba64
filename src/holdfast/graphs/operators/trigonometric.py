"""Sine and cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Activation, Box, Lines
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Sine(Activation):
    """``sin(z)``, relaxed by parallel lines whose offsets come from all critical points."""

    can_split: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].sin()

    def interval(self, *boxes: Box) -> Box:
        """Ends, and the extrema where one lies inside."""
        lower, upper = boxes[0]
        ends = lower.sin(), upper.sin()
        top = _contains(lower, upper, math.pi / 2)
        bottom = _contains(lower, upper, -math.pi / 2)
        return Box(
            torch.where(bottom, -1.0, torch.minimum(*ends)),
            torch.where(top, 1.0, torch.maximum(*ends)),
        )

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """The slope of the chord, offset by the extremes of ``sin z - k z``."""
        width = upper - lower
        chord = (upper.sin() - lower.sin()) / width.clamp(min=1e-12)
        k = torch.where(width < 1e-6, ((lower + upper) / 2).cos(), chord).clamp(-1.0, 1.0)
        # Lines over more than a period gain nothing from a slope.
        k = torch.where(width > 2 * math.pi, 0.0, k)
        at = [lower, upper]
        angle = torch.acos(k)
        for root in (angle, -angle):
            # Roots of cos z = k in the interval's first two periods; later ones only tilt further
            # away
            # for intervals up to one period, and wider intervals have slope zero.
            first = root + 2 * math.pi * torch.ceil((lower - root) / (2 * math.pi))
            at += [first, first + 2 * math.pi]
        values = torch.stack(
            [
                torch.where((z >= lower) & (z <= upper), z.sin() - k * z, lower.sin() - k * lower)
                for z in at
            ]
        )
        slack = 1e-12 * (1 + torch.maximum(lower.abs(), upper.abs()))
        return Lines(k, values.amin(0) - slack, k, values.amax(0) + slack)


def _contains(lower: Tensor, upper: Tensor, point: float) -> Tensor:
    """Whether ``point`` plus some whole number of turns lies inside, a little generously."""
    turns = torch.ceil((lower - 1e-9 - point) / (2 * math.pi))
    return point + 2 * math.pi * turns <= upper + 1e-9


@onnx("Sin", "Cos")
@aten("sin", "cos")
def build(call: Call) -> Ref:
    """Elementwise; the cosine is a shifted sine."""
    ref = call.ref()
    if call.name.lower() == "cos":
        ref = scale(call, ref, 1.0, torch.tensor(math.pi / 2, dtype=torch.float64))
    return call.emit(Sine(), ref)
