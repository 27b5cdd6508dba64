"""Powers, roots, the reciprocal, exponential and logarithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.curves import Curve
from holdfast.graphs.operator import Box, Lines
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Square(Curve):
    """``z^2``."""

    extrema: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0] * xs[0]

    def derivative(self, z: Tensor) -> Tensor:
        """``2 z``."""
        return 2 * z


@final
@dataclass(frozen=True, slots=True)
class Cube(Curve):
    """``z^3``: concave below zero, convex above."""

    inflections: ClassVar[tuple[float, ...]] = (0.0,)
    is_convex_first: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0] ** 3

    def derivative(self, z: Tensor) -> Tensor:
        """``3 z^2``."""
        return 3 * z * z


@final
@dataclass(frozen=True, slots=True)
class Exp(Curve):
    """``exp(z)``."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].exp()

    def derivative(self, z: Tensor) -> Tensor:
        """Itself."""
        return z.exp()


class _Positive(Curve):
    """A curve for positive arguments only; nothing is known where they reach zero."""

    def interval(self, *boxes: Box) -> Box:
        """Monotone; unbounded where the argument may be zero or negative."""
        lower, upper = boxes[0]
        ends = self.run(lower), self.run(upper)
        known = lower > 0
        return Box(
            torch.where(known, torch.minimum(*ends), -torch.inf),
            torch.where(known, torch.maximum(*ends), torch.inf),
        )

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """As for any curve; no number where the argument may be zero, so that nothing follows."""
        lines = super().relax(lower, upper, parameters)
        assert lines.lower_intercept is not None
        assert lines.upper_intercept is not None
        low, high = (
            torch.where(lower > 0, c, torch.nan)
            for c in (lines.lower_intercept, lines.upper_intercept)
        )
        return Lines(lines.lower_slope, low, lines.upper_slope, high)


@final
@dataclass(frozen=True, slots=True)
class Reciprocal(_Positive):
    """``1 / z`` for ``z > 0``: convex."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].reciprocal()

    def derivative(self, z: Tensor) -> Tensor:
        """``-1 / z^2``."""
        return -1 / (z * z)


@final
@dataclass(frozen=True, slots=True)
class Log(_Positive):
    """``log(z)`` for ``z > 0``: concave."""

    is_convex_first: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].log()

    def derivative(self, z: Tensor) -> Tensor:
        """``1 / z``."""
        return 1 / z


@final
@dataclass(frozen=True, slots=True)
class Sqrt(_Positive):
    """``sqrt(z)`` for ``z > 0``: concave."""

    is_convex_first: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].sqrt()

    def derivative(self, z: Tensor) -> Tensor:
        """``1 / (2 sqrt z)``."""
        return 0.5 / z.sqrt()


@final
@dataclass(frozen=True, slots=True)
class Rsqrt(_Positive):
    """``1 / sqrt(z)`` for ``z > 0``: convex."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].rsqrt()

    def derivative(self, z: Tensor) -> Tensor:
        """``-z^(-3/2) / 2``."""
        return -0.5 * z.rsqrt() / z


def power(call: Call, ref: Ref, exponent: float) -> Ref:
    """Append ``z^exponent`` for the exponents that have bounds."""
    kinds = {2.0: Square, 3.0: Cube, 0.5: Sqrt, -0.5: Rsqrt, -1.0: Reciprocal}
    if exponent == 1.0:
        return ref
    if exponent == 4.0:
        return call.emit(Square(), call.emit(Square(), ref))
    if exponent not in kinds:
        raise call.error(
            f"exponent {exponent} is not supported; known are {sorted([1.0, 4.0, *kinds])}"
        )
    return call.emit(kinds[exponent](), ref)


def reciprocal(call: Call, ref: Ref) -> Ref:
    """Append ``1 / z``; the argument has to stay positive."""
    return call.emit(Reciprocal(), ref)


@onnx("Exp", "Log", "Sqrt", "Reciprocal")
@aten("exp", "log", "sqrt", "reciprocal", "rsqrt", "square")
def build(call: Call) -> Ref:
    """Elementwise."""
    kinds = {
        "exp": Exp,
        "log": Log,
        "sqrt": Sqrt,
        "reciprocal": Reciprocal,
        "rsqrt": Rsqrt,
        "square": Square,
    }
    return call.emit(kinds[call.name.lower()](), call.ref())


@onnx("Pow")
@aten("pow")
def build_power(call: Call) -> Ref:
    """A variable to a constant exponent, or a constant base to a variable."""
    base, exponent = call.args[0], call.args[1]
    if isinstance(base, Ref):
        value = torch.as_tensor(exponent, dtype=torch.float64)
        if value.numel() != 1:
            raise call.error("exponents that differ by element are not supported")
        return power(call, base, float(value.flatten()[0]))
    factor = torch.as_tensor(base, dtype=torch.float64).log()
    if not bool(factor.isfinite().all()):
        raise call.error("the base must be positive")
    return call.emit(Exp(), scale(call, exponent, factor, 0.0))
