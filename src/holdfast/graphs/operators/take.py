"""Everything that only moves elements: slices, gathers, transposes, padding, upsampling."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from holdfast.graphs.operator import Affine, Box, Pulled
from holdfast.graphs.shapes import flattened

if TYPE_CHECKING:
    from holdfast.graphs.builder import Call, Ref


@final
@dataclass(frozen=True, slots=True)
class Take(Affine):
    """Output element ``i`` is input element ``index[i]``, or ``fill`` where the index is -1.

    Attributes:
        index: Flat positions in the input, in the shape of the output.
        fill: Value of padding.
    """

    index: Tensor
    fill: float = 0.0
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in) -> (n, *index.shape)``."""
        flat = flattened(xs[0])
        if bool((self.index < 0).any()):
            flat = torch.cat([flat, flat.new_full((len(flat), 1), self.fill)], 1)
        index = self.index.flatten()
        return flat[:, index].reshape(len(flat), *self.index.shape)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Absolute values, moved."""
        return self.run(boxes[0].magnitude()) + abs(self.fill)

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Coefficients go back to where the elements came from and add up."""
        shape = boxes[0].lower.shape[1:]
        flat, index = flattened(A, 2), self.index.flatten()
        out = A.new_zeros(*A.shape[:2], shape.numel() + 1)
        out = out.index_add(2, torch.where(index < 0, shape.numel(), index), flat)
        constant = out[:, :, -1] * self.fill if self.fill else None
        return Pulled((out[:, :, :-1].reshape(*A.shape[:2], *shape),), constant)


def take(call: Call, ref: Ref, index: Tensor, fill: float = 0.0) -> Ref:
    """Append a ``Take``, or a reshape where the order stays, or nothing where all stays."""
    from holdfast.graphs.operators.reshape import reshape

    count = torch.Size(ref.shape).numel()
    if index.numel() == count and torch.equal(index.flatten(), torch.arange(count)):
        return reshape(call, ref, tuple(index.shape))
    return call.emit(Take(index, fill), ref)
