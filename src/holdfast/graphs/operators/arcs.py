"""Arctangent and the hyperbolic sine and cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.curves import Curve


@final
@dataclass(frozen=True, slots=True)
class Arctangent(Curve):
    """``atan(z)``: convex below zero, concave above."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].atan()

    def derivative(self, z: Tensor) -> Tensor:
        """``1 / (1 + z^2)``."""
        return 1 / (1 + z * z)


@final
@dataclass(frozen=True, slots=True)
class HyperbolicSine(Curve):
    """``sinh(z)``: concave below zero, convex above."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)
    is_convex_first: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].sinh()

    def derivative(self, z: Tensor) -> Tensor:
        """``cosh(z)``."""
        return z.cosh()


@final
@dataclass(frozen=True, slots=True)
class HyperbolicCosine(Curve):
    """``cosh(z)``: convex."""

    extrema: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].cosh()

    def derivative(self, z: Tensor) -> Tensor:
        """``sinh(z)``."""
        return z.sinh()


@onnx("Atan", "Sinh", "Cosh")
@aten("atan", "sinh", "cosh")
def build(call: Call) -> Ref:
    """Elementwise."""
    kinds = {"atan": Arctangent, "sinh": HyperbolicSine, "cosh": HyperbolicCosine}
    return call.emit(kinds[call.name.lower()](), call.ref())
