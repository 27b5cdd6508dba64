"""Sums of products by index notation, and bilinear layers."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.matmul import matmul
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.sum import reduce_sum


@onnx("Einsum")
@aten("einsum")
def build(call: Call) -> Ref:
    """One or two operands; the first index of a variable is that of the batch."""
    given = call.attributes["equation"] if call.opset else call.args[0]
    operands = list(call.args if call.opset else call.args[1])
    terms, out = _parsed(call, str(given), operands)
    order = out + "".join(sorted(set("".join(terms)) - set(out)))
    spread = [_aligned(call, v, t, order) for v, t in zip(operands, terms, strict=True)]
    total = spread[0] if len(spread) == 1 else multiply(call, spread[0], spread[1])
    assert isinstance(total, Ref)
    axes = range(len(out) - 1, len(order) - 1)
    return reduce_sum(call, total, axes, keep=False) if axes else total


def _parsed(call: Call, equation: str, operands: list[Ref | Tensor]) -> tuple[list[str], str]:
    """The indices of every operand and of the result."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        out = "".join(c for c in sorted(set(left) - {","}) if left.count(c) == 1)
    if "..." in equation or len(operands) > 2:
        raise call.error("more than two operands, and '...', are not supported")
    batch = {term[0] for term, v in zip(terms, operands, strict=True) if isinstance(v, Ref)}
    if batch != set(out[:1]):
        raise call.error(f"{equation!r} does not keep the batch in front")
    if any(len(set(term)) < len(term) for term in terms):
        raise call.error("diagonals are not supported")
    return terms, out


def _aligned(call: Call, value: Ref | Tensor, term: str, order: str) -> Ref | Tensor:
    """The operand with an axis for every index of ``order``, of length one where it has none."""

    def align(p: Tensor) -> Tensor:
        present = [c for c in order if c in term]
        p = p.permute([term.index(c) for c in present])
        sizes = dict(zip(present, p.shape, strict=True))
        return p.reshape([sizes.get(c, 1) for c in order])

    return call.move(align, value) if isinstance(value, Ref) else align(value)


@aten("bilinear")
def build_bilinear(call: Call) -> Ref:
    """``x1^T W_k x2 + b_k`` for every ``k``."""
    weight, bias = call.constant(2), call.constant(3)
    assert weight is not None
    x, y = call.ref(0), call.ref(1)
    if len(x.shape) != 1:
        raise call.error("only inputs of shape (n, features) are supported")
    return _bilinear(call, x, y, weight, bias)


def _bilinear(call: Call, x: Ref, y: Ref, weight: Tensor, bias: Tensor | None) -> Ref:
    k, size, other = weight.shape
    flat = weight.transpose(1, 2).reshape(k * other, size)
    rows = call.emit(Linear(flat, flat.new_zeros(len(flat))), x)
    column = reshape(call, y, (other, 1))
    out = reshape(call, matmul(call, reshape(call, rows, (k, other)), column), (k,))
    if bias is None:
        return out
    return call.emit(Linear(torch.eye(k, dtype=bias.dtype), bias), out)
