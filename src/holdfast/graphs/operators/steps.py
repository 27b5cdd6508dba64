"""Functions with jumps: sign, step, floor, ceiling and rounding, sound at the jumps themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Activation, Box, Lines

_FUNCTIONS = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "sign": torch.sign,
    "trunc": torch.trunc,
}


@final
@dataclass(frozen=True, slots=True)
class Step(Activation):
    """An increasing step function, bounded by its values at the ends of the interval.

    Rounding errors of the argument may carry it over a jump, so both ends are first moved outward.
    """

    kind: Literal["floor", "ceil", "round", "sign", "trunc"]
    can_split: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return _FUNCTIONS[self.kind](xs[0])

    def interval(self, *boxes: Box) -> Box:
        """Values just outside the ends."""
        lower, upper = boxes[0]
        share = max(1e-9, 8 * torch.finfo(lower.dtype).eps)
        margin = share * (1 + torch.maximum(lower.abs(), upper.abs()))
        return Box(self.run(lower - margin), self.run(upper + margin))

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """Constant lines."""
        low, high = self.interval(Box(lower, upper))
        return Lines(torch.zeros_like(lower), low, torch.zeros_like(upper), high)


@onnx("Floor", "Ceil", "Round", "Sign")
@aten("floor", "ceil", "round", "sign", "trunc", "fix")
def build(call: Call) -> Ref:
    """Elementwise."""
    if call.get(1, "decimals"):
        raise call.error("rounding to decimals is not supported")
    kind: Any = {"fix": "trunc"}.get(call.name, call.name.lower())
    return call.emit(Step(kind), call.ref())
