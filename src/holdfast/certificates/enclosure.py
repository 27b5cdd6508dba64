r"""Linear lower bounds of a network whose rounding errors are paid for, not ignored.

Everything is computed in float64. A bound is kept as coefficients ``A`` on the value ``v`` of one
step, a constant ``c`` and an error ``e`` with

    target >= A v + c - e    for every point of the leaf, in real arithmetic.

The coefficients need not be the exact products: whatever float64 matrix ``B = fl(A W)`` comes out
is used, and the exact difference is charged to ``e`` where it arises. For a sum of n products in
any order, with or without fused operations, ``|A W - B| <= gamma_n |A| |W|`` with
``gamma_n = n u / (1 - n u)``, ``u = 2**-53`` (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1), so that

    A W v >= B v - gamma_n |A| (|W| m)    where |v| <= m,

and ``|W| m`` is one vector per step: an error bound costs a matrix-vector product. ReLU lines are
sound for any slope: ``max(z, 0) >= a z`` for a in [0, 1], and ``max(z, 0) <= s z + t`` on [l, u]
for any s in [0, 1] with ``t >= max(-s l, (1 - s) u)``. So neither multipliers nor slopes of a proof
are trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.steps import UNIT, Matrix, Step

Array = NDArray[np.float64]

GROW = 1.0 + 2.0**-30
"""Covers the rounding of error terms themselves: sums of fewer than 2**22 numbers of one sign."""
TINY = 1e-290
"""Covers underflow: fewer than 1e18 products, each off by less than 1e-308."""


CHUNK = 2**24
"""Coefficients held at a time while ranges are derived."""


def gamma(n: int) -> float:
    """Bound of the relative error of a sum of ``n`` products, with four roundings to spare."""
    return (n + 4) * UNIT * GROW


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines around a ReLU: ``lower_slope z <= max(z, 0) <= upper_slope z + intercept``.

    ``lower_slope`` is ``(b, r, n)``, the others ``(b, n)``: b leaves, r bounds and n neurons, where
    b and r may be 1 for all.
    """

    lower_slope: Array
    upper_slope: Array
    intercept: Array


def relu_lines(lower: Array, upper: Array, slopes: Array | None = None) -> Lines:
    """Lines on ``[lower, upper]``; ``slopes (b, r, n)`` choose the lower lines of unstable neurons.

    Without a choice it is 1 where the range reaches farther above zero than below, else 0
    (Zhang et al., 2018, arXiv:1811.00866).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        chord = np.clip(np.nan_to_num(upper / (upper - lower)), 0.0, 1.0)
    active, stable = lower >= 0, (lower >= 0) | (upper <= 0)
    upper_slope = np.where(stable, active, chord)
    if slopes is None:
        slopes = (upper > -lower).astype(np.float64)[:, None]
    lower_slope = np.where(stable[:, None], active[:, None], np.clip(slopes, 0.0, 1.0))
    ends = np.maximum(-upper_slope * lower, (1.0 - upper_slope) * upper)
    intercept = np.where(stable, 0.0, np.maximum(ends, 0.0) * (1 + 8 * UNIT) + TINY)
    return Lines(lower_slope, upper_slope, intercept)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Sound ranges of the value of every step, ``(b, n)`` each, for b leaves or one for all."""

    lower: list[Array]
    upper: list[Array]

    def magnitude(self, step: int) -> Array:
        """Largest absolute value, ``(b, n)``."""
        return np.maximum(np.abs(self.lower[step]), np.abs(self.upper[step]))


def _times(a: Array, weight: Matrix) -> Array:
    """``a @ weight`` over the last axis of ``a``, in one product whatever comes before it."""
    flat = a.reshape(-1, a.shape[-1])
    return np.asarray(flat @ weight).reshape(*a.shape[:-1], weight.shape[1])


def interval(step: Step, sources: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Range of a step from the ranges of its sources, in mid and radius."""
    lower, upper = sources[0]
    if step.kind == "relu":
        return np.maximum(lower, 0.0), np.maximum(upper, 0.0)
    if step.kind == "add":
        return down(lower + sources[1][0]), up(upper + sources[1][1])
    assert step.weight is not None
    assert step.bias is not None
    middle = 0.5 * (lower + upper)
    radius = up(np.maximum(upper - middle, middle - lower))
    size = abs(step.weight)
    value = _times(middle, step.weight.T) + step.bias
    spread = _times(radius, size.T) * (1 + gamma(step.weight.shape[1]))
    loss = (gamma(step.weight.shape[1] + 1) + step.relative) * GROW
    reach = np.maximum(np.abs(lower), np.abs(upper))
    spread += loss * (_times(np.abs(middle) + reach, size.T) + np.abs(step.bias)) * GROW + TINY
    return down(value - up(spread)), up(value + up(spread))


def up(a: Array) -> Array:
    """The next float64 above."""
    return np.nextafter(a, np.inf)


def down(a: Array) -> Array:
    """The next float64 below."""
    return np.nextafter(a, -np.inf)


@dataclass(slots=True)
class LinearBound:
    """``target >= sum of A_k v_k + c - e`` while walking from a step back to the input.

    Attributes:
        steps: the network.
        ranges: sound ranges of all values that are met.
        coefficients: A_k by step, ``(b, r, n)``.
        constant: c, ``(b, r)``.
        error: e, ``(b, r)``.
    """

    steps: Sequence[Step]
    ranges: Ranges
    coefficients: dict[int, Array]
    constant: Array
    error: Array

    def charge(self, a: Array, loss: Array) -> None:
        """Pay ``|a| loss``; ``loss (b, n)`` is what a unit of each coefficient may lose."""
        self.error = self.error + GROW * np.matmul(np.abs(a), loss[:, :, None])[..., 0] + TINY

    def add_constant(self, a: Array, values: Array) -> None:
        """Add ``a @ values``, ``values (b, n)``; the rounding of the products is not paid here."""
        self.constant = self.constant + np.matmul(a, values[:, :, None])[..., 0]
        self.error = self.error + 2 * UNIT * np.abs(self.constant)

    def put(self, step: int, a: Array) -> None:
        """Add coefficients on the value of a step."""
        if step in self.coefficients:
            a = self.coefficients[step] + a
            self.charge(a, 2 * UNIT * self.ranges.magnitude(step))
        self.coefficients[step] = a

    def lower(self, lines: Mapping[int, Lines]) -> Array:
        """Walk to the input and take the least value over its range: ``(b, r)``."""
        while (at := max(self.coefficients)) > 0:
            a, step = self.coefficients.pop(at), self.steps[at]
            match step.kind:
                case "add":
                    for source in step.sources:
                        self.put(source, a)
                case "relu":
                    self.through_relu(step, a, lines[at])
                case _:
                    self.through_affine(step, a)
        a = self.coefficients.pop(0)
        self.add_constant(np.maximum(a, 0.0), self.ranges.lower[0])
        self.add_constant(np.minimum(a, 0.0), self.ranges.upper[0])
        self.charge(a, gamma(a.shape[-1]) * self.ranges.magnitude(0))
        return down(self.constant - up(self.error * GROW))

    def through_affine(self, step: Step, a: Array) -> None:
        """Replace ``a (W v + b)`` by ``(a W) v + a b``."""
        assert step.weight is not None
        assert step.bias is not None
        (source,) = step.sources
        self.add_constant(a, step.bias[None])
        reach = _times(self.ranges.magnitude(source), abs(step.weight).T) + np.abs(step.bias)
        self.charge(a, (gamma(a.shape[-1]) + 2 * step.relative) * GROW * reach)
        self.put(source, _times(a, step.weight))

    def through_relu(self, step: Step, a: Array, lines: Lines) -> None:
        """Replace ``a max(z, 0)`` by its lower line: below for positive a, above for negative."""
        (source,) = step.sources
        self.add_constant(np.minimum(a, 0.0), lines.intercept)
        loss = 2 * UNIT * self.ranges.magnitude(source) + gamma(a.shape[-1]) * lines.intercept
        self.charge(a, loss * GROW)  # slopes are at most 1: |a| bounds the new coefficients too
        self.put(source, a * np.where(a > 0, lines.lower_slope, lines.upper_slope[:, None]))


def start(
    steps: Sequence[Step], ranges: Ranges, coefficients: Mapping[int, Array], batch: int, rows: int
) -> LinearBound:
    """A bound with the given coefficients, ``(1 or b, r, n)`` each, and nothing else yet."""
    zero = np.zeros((batch, rows))
    return LinearBound(steps, ranges, dict(coefficients), zero, zero.copy())


def propagate(
    steps: Sequence[Step],
    lower: Array,
    upper: Array,
    slopes: Mapping[int, Mapping[int, Array]] | None = None,
) -> tuple[Ranges, dict[int, Lines]]:
    """Ranges of all values over boxes ``(b, p)``: intervals, then linear bounds before each ReLU.

    Args:
        steps: the network.
        lower: least inputs, ``(b, p)``.
        upper: greatest inputs, ``(b, p)``.
        slopes: for a ReLU step, lower slopes by earlier ReLU step for the rows of its linear
            bounds, ``(2 n, m)``: first for the lower, then for the upper ends of its n inputs.
    """
    ranges, lines = Ranges([lower], [upper]), {}
    for at, step in enumerate(steps[1:], 1):
        if step.kind == "relu":
            tighten(steps, ranges, lines, step.sources[0], (slopes or {}).get(at, {}))
        pairs = [(ranges.lower[s], ranges.upper[s]) for s in step.sources]
        bounds = interval(step, pairs)
        if step.kind == "relu":
            lines[at] = relu_lines(*pairs[0])
        ranges.lower.append(bounds[0])
        ranges.upper.append(bounds[1])
    return ranges, lines


def tighten(
    steps: Sequence[Step],
    ranges: Ranges,
    lines: Mapping[int, Lines],
    at: int,
    slopes: Mapping[int, Array],
) -> None:
    """Improve the range of step ``at`` by linear bounds of its neurons of unknown sign.

    The others keep their intervals, even where a neighbour in the batch needs the bound: the
    derivation of a leaf depends on nothing but the leaf.
    """
    lower, upper = ranges.lower[at].copy(), ranges.upper[at].copy()
    is_unknown = (lower < 0) & (upper > 0)
    unknown = np.flatnonzero(is_unknown.any(axis=0))
    if not lines:
        return  # nothing but affine steps before: the intervals are as good
    batch, size = lower.shape
    widest = max(step.size for step in steps[: at + 1])
    n_chunks = 1 + batch * 2 * len(unknown) * widest // CHUNK
    for part in np.array_split(unknown, n_chunks):
        half = len(part)
        unit = np.zeros((1, 2 * half, size))
        unit[0, np.arange(half), part] = 1.0
        unit[0, np.arange(half, 2 * half), part] = -1.0
        chosen = dict(lines)
        for relu, given in slopes.items():
            (source,) = steps[relu].sources
            rows = np.concatenate([given[part], given[size + part]])[None]
            chosen[relu] = relu_lines(ranges.lower[source], ranges.upper[source], rows)
        found = start(steps, ranges, {at: unit}, batch, 2 * half).lower(chosen)
        mine = is_unknown[:, part]
        lower[:, part] = np.where(mine, np.maximum(lower[:, part], found[:, :half]), lower[:, part])
        upper[:, part] = np.where(
            mine, np.minimum(upper[:, part], -found[:, half:]), upper[:, part]
        )
    ranges.lower[at], ranges.upper[at] = lower, upper
