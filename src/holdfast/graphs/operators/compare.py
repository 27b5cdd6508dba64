"""Comparisons, logic, and choices between two values.

The outcome of a comparison is a value of 0 or 1; where the interval of the difference reaches the
jump, either may be it. A choice by such a value is bounded by both alternatives.
"""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Activation, Box, Lines, Operator, Pulled
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.take import take
from holdfast.graphs.shapes import flattened


@final
@dataclass(frozen=True, slots=True)
class Above(Activation):
    """1 where ``z > 0``, else 0; at 0 it is ``at_zero``."""

    at_zero: float
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        z = xs[0]
        return torch.where(z == 0, self.at_zero, (z > 0).to(z.dtype))

    def interval(self, *boxes: Box) -> Box:
        """Both outcomes where the interval comes near zero, as the network rounds too."""
        lower, upper = boxes[0]
        margin = max(1e-9, 8 * torch.finfo(lower.dtype).eps) * (1 + boxes[0].magnitude())
        at_zero = torch.full_like(lower, self.at_zero)
        low = torch.where(lower > margin, 1.0, at_zero.clamp(max=0.0))
        high = torch.where(upper < -margin, 0.0, at_zero.clamp(min=1.0))
        return Box(low.to(lower.dtype), high.to(lower.dtype))

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """Constant lines."""
        low, high = self.interval(Box(lower, upper))
        return Lines(torch.zeros_like(lower), low, torch.zeros_like(upper), high)


@final
@dataclass(frozen=True, slots=True)
class Select(Operator):
    """``a`` where the condition is 1 and ``b`` where it is 0; three variables of one shape."""

    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return torch.where(xs[0] > 0.5, xs[1], xs[2])

    def interval(self, *boxes: Box) -> Box:
        """The alternative that is decided, or both."""
        condition, a, b = boxes
        yes, no = condition.lower > 0.5, condition.upper < 0.5
        lower, upper = torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper)
        return Box(
            torch.where(yes, a.lower, torch.where(no, b.lower, lower)),
            torch.where(yes, a.upper, torch.where(no, b.upper, upper)),
        )

    def is_loose(self, box: Box) -> Tensor:
        """All three inputs matter."""
        return box.upper > box.lower

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """The decided alternative itself, else the least or greatest value of both."""
        condition = boxes[0]
        yes = (condition.lower > 0.5).unsqueeze(1)
        no = (condition.upper < 0.5).unsqueeze(1)
        box = self.interval(*boxes)
        is_open = ~(yes | no)
        worst = A.relu() * box.lower.unsqueeze(1) - (-A).relu() * box.upper.unsqueeze(1)
        constant = flattened(torch.where(is_open, worst, 0.0), 2).sum(2)
        return Pulled((torch.zeros_like(A), A * yes, A * no), constant)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Both alternatives."""
        return boxes[1].magnitude() + boxes[2].magnitude()


_KINDS = {"gt": (1, 0.0), "ge": (1, 1.0), "lt": (-1, 0.0), "le": (-1, 1.0)}
_ONNX = {"Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le"}


@onnx(*_ONNX)
@aten(*_KINDS)
def build_comparison(call: Call) -> Ref:
    """Of two variables, or of a variable with a constant."""
    sign, at_zero = _KINDS[_ONNX.get(call.name, call.name)]
    return call.emit(Above(at_zero), _gap(call, sign))


def _gap(call: Call, sign: int) -> Ref:
    x, y = call.args[0], call.args[1]
    if isinstance(x, Ref) and isinstance(y, Ref):
        x, y = _alike(call, x, y)
        return add(call, x, y, -1) if sign > 0 else add(call, y, x, -1)
    if isinstance(x, Ref):
        return scale(call, x, float(sign), -sign * _float(y))
    return scale(call, y, float(-sign), sign * _float(x))


@onnx("Equal")
@aten("eq", "ne")
def build_equality(call: Call) -> Ref:
    """Neither above nor below."""
    gap = _gap(call, 1)
    above = call.emit(Above(0.0), gap)
    below = call.emit(Above(0.0), scale(call, gap, -1.0, 0.0))
    differs = add(call, above, below)
    return differs if call.name == "ne" else _not(call, differs)


@aten("heaviside")
def build_heaviside(call: Call) -> Ref:
    """The step function with a given value at zero."""
    at_zero = call.constant(1)
    assert at_zero is not None
    if at_zero.numel() != 1:
        raise call.error("values at zero that differ by element are not supported")
    return call.emit(Above(float(at_zero)), call.ref())


def _not(call: Call, ref: Ref) -> Ref:
    return scale(call, ref, -1.0, 1.0)


@onnx("Not")
@aten("logical_not", "bitwise_not")
def build_not(call: Call) -> Ref:
    """1 for 0."""
    return _not(call, call.ref())


@onnx("And", "Or", "Xor")
@aten("logical_and", "bitwise_and", "logical_or", "bitwise_or", "logical_xor", "bitwise_xor")
def build_logic(call: Call) -> Ref:
    """By products: ``x y``, ``x + y - x y``, ``x + y - 2 x y``."""
    x, y = (v if isinstance(v, Ref) else _float(v) for v in call.args[:2])
    both = multiply(call, x, y)
    kind = call.name.lower().rsplit("_", 1)[-1]
    if kind == "and":
        return both
    if isinstance(x, Ref) and isinstance(y, Ref):
        total = add(call, *_alike(call, x, y))
    elif isinstance(x, Ref):
        total = scale(call, x, 1.0, _float(y))
    else:
        assert isinstance(y, Ref)
        total = scale(call, y, 1.0, x)
    return add(call, total, scale(call, both, 1.0 if kind == "or" else 2.0, 0.0), -1)


@onnx("Where")
@aten("where")
def build_where(call: Call) -> Ref:
    """A choice; by a constant condition it only joins parts of both."""
    return select(call, *call.args[:3])


@aten("masked_fill")
def build_masked_fill(call: Call) -> Ref:
    """A constant where the mask says so."""
    return select(call, call.args[1], call.args[2], call.args[0])


@onnx("Trilu")
def build_triangle(call: Call) -> Ref:
    """The upper or lower triangle, zeros elsewhere."""
    ref, given = call.ref(), call.constant(1)
    k = 0 if given is None else int(given)
    ones = torch.ones(ref.shape[-2:], dtype=torch.bool)
    mask = ones.triu(k) if call.attributes.get("upper", 1) else ones.tril(k)
    return select(call, mask.expand(1, *ref.shape), ref, 0.0)


def select(call: Call, condition: Any, a: Any, b: Any) -> Ref:
    """Append ``a if condition else b``, each a variable or a constant."""
    shape = torch.broadcast_shapes(*(_shape(v) for v in (condition, a, b)))
    if isinstance(condition, Ref):
        return call.emit(Select(), *(_variable(call, v, shape) for v in (condition, a, b)))
    mask = torch.as_tensor(condition).bool().expand(1, *shape)[0]
    parts = []
    for value, chosen in ((a, mask), (b, ~mask)):
        if isinstance(value, Ref):
            index = torch.arange(torch.Size(shape).numel()).reshape(shape)
            spread = _variable(call, value, shape)
            parts.append(take(call, spread, torch.where(chosen, index, -1)))
        else:
            parts.append(torch.where(chosen, _float(value).expand(1, *shape)[0], 0.0))
    x, y = parts
    if isinstance(x, Ref) and isinstance(y, Ref):
        return add(call, x, y)
    ref, constant = (x, y) if isinstance(x, Ref) else (y, x)
    return scale(call, ref, 1.0, constant.unsqueeze(0))


def _shape(value: Any) -> tuple[int, ...]:
    """Without the batch axis."""
    if isinstance(value, Ref):
        return value.shape
    return tuple(torch.as_tensor(value).shape[1:])


def _float(value: Any) -> Tensor:
    value = torch.as_tensor(value)
    return value if value.is_floating_point() else value.double()


def _variable(call: Call, value: Any, shape: Sequence[int]) -> Ref:
    """A value as a variable of this shape."""
    if isinstance(value, Ref):
        grown = call.move(
            lambda p: p.reshape(1, *[1] * (len(shape) - len(value.shape)), *value.shape).expand(
                1, *shape
            ),
            value,
        )
        return grown
    constant = _float(value)
    constant = constant.expand(1, *shape) if constant.dim() <= len(shape) + 1 else constant
    blank = take(call, Ref(0, call.builder.nodes[0].shape), torch.full(tuple(shape), -1))
    return scale(call, blank, 1.0, constant)


def _alike(call: Call, x: Ref, y: Ref) -> tuple[Ref, Ref]:
    shape = torch.broadcast_shapes(x.shape, y.shape)
    return _variable(call, x, shape), _variable(call, y, shape)
