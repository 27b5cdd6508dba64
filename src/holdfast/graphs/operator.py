"""Kinds of operators and what each must say: how to run, to bound and to relax linearly.

Linear relaxations are pulled back: given coefficients ``A (n, k, *out)`` of expressions
``A . op(z)``, ``pull`` returns coefficients ``A' (n, k, *in)`` for every input and constants
``c (n, k)`` with ``A . op(z) >= A' . z + c`` for all ``z`` in the boxes. Upper bounds are lower
bounds of the negated expression, so there is one direction only.
"""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from holdfast.graphs.shapes import flattened
from holdfast.graphs.window import Window


class Box(NamedTuple):
    """Elementwise bounds ``lower <= z <= upper``, each ``(n, *shape)``."""

    lower: Tensor
    upper: Tensor

    def magnitude(self) -> Tensor:
        """Largest absolute value inside, ``(n, *shape)``."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def intersect(self, other: Box) -> Box:
        """The common part; where rounding made it empty, the two touching ends are swapped."""
        lower = torch.fmax(self.lower, other.lower)
        upper = torch.fmin(self.upper, other.upper)
        return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))


class Pulled(NamedTuple):
    """Coefficients for each input, ``(n, k, *in)``, and constants ``(n, k)`` or None for zero."""

    coefficients: tuple[Tensor, ...]
    constant: Tensor | None


class Operator(ABC):
    """One step of a graph. Subclasses are frozen dataclasses that carry their own weights."""

    is_affine: ClassVar[bool] = False
    is_diagonal: ClassVar[bool] = False
    """Every output element reads a single input element and no two read the same one."""
    n_parameters: ClassVar[int] = 0
    """Free choices in [0, 1] per element of the relaxation, any of which is sound."""
    rounds: ClassVar[bool] = True
    """Whether ``interval`` computes in floating point, so that its result needs widening."""
    can_split: ClassVar[bool] = False
    """Splitting the range of the input sharpens the relaxation (elementwise operators only)."""

    relaxes_rows: ClassVar[bool] = False
    """One input, and relaxed as well for one row of coefficients as for many together."""

    @abstractmethod
    def run(self, *xs: Tensor) -> Tensor:
        """Outputs ``(n, *out)`` of inputs ``(n, *in)``."""

    @abstractmethod
    def interval(self, *boxes: Box) -> Box:
        """Bounds of the outputs over boxes of inputs, without regard to rounding."""

    @abstractmethod
    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Lower linear bounds of ``A . op(z)`` in ``z``; ``parameters (q, n, k or 1, *in)``."""

    @abstractmethod
    def magnitude(self, *boxes: Box) -> Tensor | None:
        """Bound ``(n, *out)`` of the absolute values summed up per output; scales rounding.

        None where rounding in ``pull`` stays within a few units of ``|A'| |z|``, with ``A'`` the
        result and ``z`` the input: the node that computes ``z`` has to account for that anyway.
        """

    def wobble(self, boxes: Sequence[Box], box: Box, magnitude: Tensor) -> Box:
        """What rounding of ``interval``'s two ends scales with, ``(n, *out)`` each."""
        return Box(magnitude, magnitude)

    def start(self, box: Box) -> Tensor:
        """Parameters ``(q, n, *shape)`` that choose the default relaxation over a box."""
        raise NotImplementedError(f"{type(self).__name__} has no parameters")

    def is_loose(self, box: Box) -> Tensor:
        """Where tighter bounds of the input would help, a mask like ``box.lower``."""
        return box.upper > box.lower

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """``pull`` for windowed coefficients: those of the single input and constants ``(r, k)``.

        None where the operator does not keep windows.
        """
        return None

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Self:
        """The operator with its floating-point weights in another precision or place."""
        moved: dict[str, Tensor] = {}
        for name in (f.name for f in fields(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, Tensor):
                target = dtype if value.is_floating_point() else value.dtype
                moved[name] = value.to(dtype=target, device=device)
        return replace(self, **moved)  # type: ignore[type-var]


class Affine(Operator):
    """An operator that is affine in all its inputs together: relaxed without loss."""

    is_affine = True

    def interval(self, *boxes: Box) -> Box:
        """Valid for operators whose coefficients are all >= 0; others override it."""
        return Box(self.run(*(b.lower for b in boxes)), self.run(*(b.upper for b in boxes)))

    def magnitude(self, *boxes: Box) -> Tensor | None:
        """Valid for operators whose coefficients are all >= 0 and whose offset is zero."""
        return self.run(*(b.magnitude() for b in boxes))


class Lines(NamedTuple):
    """``lower_slope z + lower_intercept <= f(z) <= upper_slope z + upper_intercept``."""

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor | None


class Activation(Operator):
    """A function of one variable applied to every element."""

    is_diagonal = True
    can_split = True
    is_rectifier: ClassVar[bool] = False
    """``max(z, 0)``, whose one parameter is the slope of the lower line."""

    @abstractmethod
    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """Lines below and above on ``[lower, upper]``, both ``(n, 1, *shape)``."""

    def branch_point(self, box: Box) -> Tensor:
        """Where to cut the range of the input, ``(n, *shape)``."""
        return (box.lower + box.upper) / 2

    def wobble(self, boxes: Sequence[Box], box: Box, magnitude: Tensor) -> Box:
        """Functions are computed to a few units in the last place of their value."""
        return Box(box.lower.abs(), box.upper.abs())

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Lower lines where the coefficient is positive, upper lines where it is negative."""
        box = boxes[0]
        return pull_lines(A, self.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), parameters))

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """Elementwise: each row is a sample of its own with the boxes of its window."""
        box = Box(window.gather(boxes[0].lower), window.gather(boxes[0].upper))
        pulled = self.pull(window.A, [box])
        constant = pulled.constant
        if constant is None:
            constant = window.A.new_zeros(window.A.shape[:2])
        return window._replace(A=pulled.coefficients[0]), constant

    def magnitude(self, *boxes: Box) -> Tensor | None:
        """Values, slopes times inputs and intercepts together."""
        box = boxes[0]
        lines = self.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), None)
        z = box.magnitude()
        total = self.interval(box).magnitude() + z
        for slope in (lines.lower_slope, lines.upper_slope):
            total = total + slope.squeeze(1).abs() * z
        for intercept in (lines.lower_intercept, lines.upper_intercept):
            if intercept is not None:
                total = total + intercept.squeeze(1).abs()
        return total


def pull_lines(A: Tensor, lines: Lines) -> Pulled:
    """``A . f(z)`` from lines of ``f``: lower ones where ``A > 0``, upper ones where ``A < 0``."""
    negative = A.clamp(max=0.0)
    # A+ s + A- t is A s + A- (t - s): one pass over A less than with both parts at hand.
    slope, other = lines.lower_slope, lines.upper_slope - lines.lower_slope
    coefficients = torch.addcmul(A * slope, negative, other)
    constant = None
    if lines.upper_intercept is not None:
        constant = dot(negative, lines.upper_intercept)
    if lines.lower_intercept is not None:
        term = dot(A, lines.lower_intercept) - dot(negative, lines.lower_intercept)
        constant = term if constant is None else constant + term
    return Pulled((coefficients,), constant)


def dot(A: Tensor, b: Tensor) -> Tensor:
    """``sum A b`` over all but the first two axes: ``(n, k, *s), (n, 1 or k, *s) -> (n, k)``."""
    if b.shape[1] == 1:
        flat = flattened(A, 2)
        return torch.bmm(flat, b.reshape(b.shape[0], -1, 1).expand(A.shape[0], -1, 1)).squeeze(2)
    return flattened(A * b, 2).sum(2)


def sum_to(A: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo broadcasting of the trailing axes: ``(n, k, *out) -> (n, k, *shape)``."""
    return A.sum_to_size(*A.shape[:2], *([1] * (A.dim() - 2 - len(shape))), *shape).reshape(
        *A.shape[:2], *shape
    )
