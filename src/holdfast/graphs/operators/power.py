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

_NEAR_ZERO = 1e-30


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
    """A curve for positive arguments only; nothing is known where they reach zero.

    Unless it goes on to zero itself: then nothing is known where they are negative.
    """

    reaches_zero: ClassVar[bool] = False

    def interval(self, *boxes: Box) -> Box:
        """Monotone; unbounded where the argument may be zero or negative."""
        lower, upper = boxes[0]
        ends = self.run(lower), self.run(upper)
        known = self._is_known(lower)
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
            torch.where(self._is_known(lower), c, torch.nan)
            for c in (lines.lower_intercept, lines.upper_intercept)
        )
        return Lines(lines.lower_slope, low, lines.upper_slope, high)

    def _is_known(self, lower: Tensor) -> Tensor:
        return lower >= 0 if self.reaches_zero else lower > 0


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
    """``sqrt(z)`` for ``z >= 0``: concave."""

    is_convex_first: ClassVar[bool] = False
    reaches_zero: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0].sqrt()

    def derivative(self, z: Tensor) -> Tensor:
        """``1 / (2 sqrt z)``, finite at zero."""
        return 0.5 / z.clamp(min=_NEAR_ZERO).sqrt()


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


@dataclass(frozen=True, slots=True)
class _Power(Curve):
    """``z^p``."""

    p: float

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return xs[0] ** self.p

    def derivative(self, z: Tensor) -> Tensor:
        """``p z^(p - 1)``."""
        return self.p * z ** (self.p - 1)


@final
class EvenPower(_Power):
    """For even whole ``p``: convex."""

    __slots__ = ()
    extrema: ClassVar[tuple[float, ...]] = (0.0,)


@final
class OddPower(_Power):
    """For odd whole ``p``: concave below zero, convex above."""

    __slots__ = ()
    inflections: ClassVar[tuple[float, ...]] = (0.0,)
    is_convex_first: ClassVar[bool] = False


@final
class ConvexPower(_Power, _Positive):
    """For ``z > 0``, with ``p > 1`` or ``p < 0``."""

    __slots__ = ()


@final
class ConcavePower(_Power, _Positive):
    """For ``z >= 0``, with ``0 < p < 1``."""

    __slots__ = ()
    is_convex_first: ClassVar[bool] = False
    reaches_zero: ClassVar[bool] = True

    def derivative(self, z: Tensor) -> Tensor:
        """Finite at zero."""
        return self.p * z.clamp(min=_NEAR_ZERO) ** (self.p - 1)


def power(call: Call, ref: Ref, exponent: float) -> Ref:
    """Append ``z^exponent``; exponents that are no whole number need ``z`` to stay positive."""
    kinds = {2.0: Square, 3.0: Cube, 0.5: Sqrt, -0.5: Rsqrt, -1.0: Reciprocal}
    if exponent in kinds:
        return call.emit(kinds[exponent](), ref)
    if exponent in (0.0, 1.0):
        return ref if exponent else scale(call, ref, 0.0, 1.0)
    return call.emit(_kind(exponent)(exponent), ref)


def _kind(exponent: float) -> type[_Power]:
    if exponent > 0 and exponent == int(exponent):
        return OddPower if exponent % 2 else EvenPower
    return ConcavePower if 0 < exponent < 1 else ConvexPower


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


@aten("expm1", "log1p")
def build_beside_one(call: Call) -> Ref:
    """``exp(z) - 1`` and ``log(1 + z)``."""
    if call.name == "expm1":
        return scale(call, call.emit(Exp(), call.ref()), 1.0, -1.0)
    return call.emit(Log(), scale(call, call.ref(), 1.0, 1.0))


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
