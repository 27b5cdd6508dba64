"""Sigmoid, tanh and the error function: S-shaped, convex before zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.curves import Curve


@final
@dataclass(frozen=True, slots=True)
class Sigmoid(Curve):
    """``1 / (1 + exp(-z))``."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].sigmoid()

    def derivative(self, z: Tensor) -> Tensor:
        """``s (1 - s)``, formed without cancellation."""
        return z.sigmoid() * (-z).sigmoid()


@final
@dataclass(frozen=True, slots=True)
class Tanh(Curve):
    """The hyperbolic tangent."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].tanh()

    def derivative(self, z: Tensor) -> Tensor:
        """``1 / cosh^2``, formed from sigmoids so that it does not overflow."""
        return 4 * (2 * z).sigmoid() * (-2 * z).sigmoid()


@final
@dataclass(frozen=True, slots=True)
class Erf(Curve):
    """The error function."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return torch.erf(xs[0])

    def derivative(self, z: Tensor) -> Tensor:
        """``2 / sqrt(pi) exp(-z^2)``."""
        return 2 / math.sqrt(math.pi) * torch.exp(-z * z)


@onnx("Sigmoid", "Tanh", "Erf")
@aten("sigmoid", "tanh", "erf")
def build(call: Call) -> Ref:
    """Elementwise."""
    kinds = {"sigmoid": Sigmoid, "tanh": Tanh, "erf": Erf}
    return call.emit(kinds[call.name.lower()](), call.ref())
