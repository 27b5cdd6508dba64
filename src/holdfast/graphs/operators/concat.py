"""Concatenation along an axis."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Concat(Affine):
    """Inputs side by side along ``axis`` (counted without the batch)."""

    axis: int
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in_i) -> (n, *out)``."""
        return torch.cat(xs, self.axis + 1)

    def magnitude(self, *boxes: Box) -> None:
        """Nothing is computed."""
        return None

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Each input gets its own part."""
        sizes = [b.lower.shape[self.axis + 1] for b in boxes]
        return Pulled(tuple(A.split(sizes, self.axis + 2)), None)


def concat(call: Call, parts: Sequence[Ref | Tensor], axis: int) -> Ref:
    """Append a concatenation; ``axis`` counts the batch, constants have it too."""
    first = next(p for p in parts if isinstance(p, Ref))
    position = call.axis(axis, first)
    refs = [p if isinstance(p, Ref) else _constant(call, first, p) for p in parts]
    return call.emit(Concat(position), *refs)


def _constant(call: Call, like: Ref, constant: Tensor) -> Ref:
    """A constant as a node: zero times one of the input's elements plus the constant."""
    from holdfast.graphs.operators.take import take

    shape = tuple(constant.shape[1:])
    ref = take(call, like, torch.zeros(shape, dtype=torch.long))
    return scale(call, ref, torch.zeros(shape), constant)


@onnx("Concat")
def onnx_concat(call: Call) -> Ref:
    """Along a given axis."""
    return concat(call, call.args, int(call.attributes["axis"]))


@aten("cat")
def aten_cat(call: Call) -> Ref:
    """Along a given axis, the first by default."""
    return concat(call, call.args[0], int(call.get(1, "dim", 0)))


@aten("stack")
def aten_stack(call: Call) -> Ref:
    """Along a new axis."""
    parts = call.args[0]
    axis = int(call.get(1, "dim", 0)) % (len(parts[0].shape) + 2) - 1
    grown = [reshape(call, p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts]
    return concat(call, grown, axis + 1)
