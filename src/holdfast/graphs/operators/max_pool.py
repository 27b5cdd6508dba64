"""Maximum pooling with its windows, so that bounds of single elements stay within a few cells."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref
from holdfast.graphs.operator import Box, Operator, Pulled
from holdfast.graphs.window import Window


class Planes(NamedTuple):
    """Linear bounds of the largest of several cells, each of which reads one cell.

    ``z[below] <= max z <= slope z[above] + intercept``; all ``(b, channels, outputs)``.
    """

    below: Tensor
    above: Tensor
    slope: Tensor
    intercept: Tensor


@final
@dataclass(frozen=True, slots=True)
class MaxPool(Operator):
    """Largest cell of every window: ``(n, channels, *in) -> (n, channels, *out)``.

    Attributes:
        cells: Flat positions in the map that each output reads ``(*out, k)``; -1 for padding.
        kernel, stride, padding, dilation: Of the windows, one number per axis; ``padding`` at the
            beginning.
    """

    cells: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    rounds: ClassVar[bool] = False
    relaxes_rows: ClassVar[bool] = True

    def run(self, *xs: Tensor) -> Tensor:
        """Padding is never the largest."""
        return _seen(xs[0].flatten(2), self.cells).amax(-1)

    def interval(self, *boxes: Box) -> Box:
        """Increasing in every cell."""
        return Box(self.run(boxes[0].lower), self.run(boxes[0].upper))

    def is_loose(self, box: Box) -> Tensor:
        """Cells that could be the largest of a window, unless only one can."""
        low, high = (_seen(end.flatten(2), self.cells) for end in box)
        rivals = high > low.amax(-1, keepdim=True)
        rivals &= (rivals.sum(-1, keepdim=True) > 1) & (self.cells >= 0)
        n, channels = box.lower.shape[:2]
        at = self.cells.clamp(min=0).flatten().expand(n, channels, -1)
        flat = torch.zeros(n, channels, box.lower[0, 0].numel(), device=at.device)
        flat = flat.scatter_add(2, at, rivals.flatten(2).to(flat.dtype))
        return flat.reshape(box.lower.shape) > 0

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Below: the cell with the largest lower bound. Above: see ``planes``."""
        box = boxes[0]
        found = planes(box.lower.flatten(2), box.upper.flatten(2), self.cells)
        size = box.lower[0, 0].numel()
        flat, constant = _pulled(A.flatten(3), found, size)
        return Pulled((flat.reshape(*A.shape[:3], *box.lower.shape[2:]),), constant)

    def pull_window(self, window: Window, boxes: Sequence[Box]) -> tuple[Window, Tensor] | None:
        """The cells below the window; those outside the map are never chosen."""
        out = window.A.shape[3:]
        sizes = [
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(out, self.stride, self.dilation, self.kernel, strict=True)
        ]
        stride, padding = (window.origin.new_tensor(v) for v in (self.stride, self.padding))
        shape = window.A.new_empty(()).expand(len(window.A), 1, window.A.shape[2], *sizes)
        below = Window(shape, window.origin * stride - padding, window.sample)
        _, inside = below.positions(boxes[0].lower.shape[2:])
        low, high = (
            end.masked_fill(~inside.unsqueeze(1), torch.finfo(end.dtype).min).flatten(2)
            for end in below.gather_all(*boxes[0])
        )
        cells = _cells(sizes, out, self.kernel, self.stride, self.dilation, low.device)
        flat, constant = _pulled(window.A.flatten(3), planes(low, high, cells), low.shape[2])
        A = flat.reshape(*window.A.shape[:3], *sizes)
        return below._replace(A=A), constant

    def magnitude(self, *boxes: Box) -> Tensor:
        """Slopes are at most one; the intercept adds two more values."""
        return 4 * self.run(boxes[0].magnitude())


def planes(low: Tensor, high: Tensor, cells: Tensor) -> Planes:
    """Bounds of each window's maximum from bounds ``(b, channels, size)`` of the cells.

    Let ``c`` be the larger of the greatest lower bound and the second greatest upper bound. Then
    ``max z <= max(c, z_j)`` for the leader ``j``, which lies under its chord on ``[l_j, u_j]``:
    ``c + (u_j - c) / (u_j - l_j) (z_j - l_j)``, which is ``z_j`` itself where no rival reaches
    ``l_j``.
    """
    lows, highs = _seen(low, cells), _seen(high, cells)
    floor, best = lows.flatten(2, -2).max(-1)
    top = highs.flatten(2, -2).topk(min(2, cells.shape[-1]), -1)
    leader = top.indices[..., :1]
    l, u = lows.flatten(2, -2).gather(-1, leader).squeeze(-1), top.values[..., 0]  # noqa: E741
    second = top.values[..., 1] if top.values.shape[-1] > 1 else torch.full_like(u, -torch.inf)
    floor = torch.maximum(floor, second)
    slope = ((u - floor).clamp(min=0) / (u - l).clamp(min=torch.finfo(u.dtype).tiny)).clamp(max=1)
    places = cells.flatten(0, -2).clamp(min=0).expand(*best.shape, -1)
    return Planes(
        places.gather(-1, best.unsqueeze(-1)).squeeze(-1),
        places.gather(-1, leader).squeeze(-1),
        slope,
        floor - slope * l,
    )


def _pulled(A: Tensor, found: Planes, size: int) -> tuple[Tensor, Tensor]:
    """Coefficients ``(b, q, channels, size)`` and constants ``(b, q)`` of ``A (b, q, c, out)``."""
    positive = A.relu()
    negative = A - positive
    below, above = (i.unsqueeze(1).expand_as(A) for i in (found.below, found.above))
    flat = A.new_zeros(*A.shape[:3], size).scatter_add(3, below, positive)
    flat = flat.scatter_add(3, above, negative * found.slope.unsqueeze(1))
    return flat, (negative * found.intercept.unsqueeze(1)).flatten(2).sum(2)


def _seen(flat: Tensor, cells: Tensor) -> Tensor:
    """What windows show of maps ``(..., size)``: ``(..., *out, k)``, padding very small."""
    seen = flat[..., cells.clamp(min=0)]
    if bool((cells < 0).any()):
        seen = seen.masked_fill(cells < 0, torch.finfo(flat.dtype).min)
    return seen


def _cells(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    device: torch.device | None = None,
    padding: Sequence[int] | None = None,
) -> Tensor:
    """Flat positions in a map of ``size`` read by every output ``(*out, k)``; -1 outside."""
    axes = len(size)
    flat, inside = torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.bool)
    for i in range(axes):
        at = torch.arange(out[i])[:, None] * stride[i] + torch.arange(kernel[i]) * dilation[i]
        at = at - (padding[i] if padding is not None else 0)
        view = [1] * (2 * axes)
        view[i], view[axes + i] = out[i], kernel[i]
        at = at.reshape(view)
        flat = flat * size[i] + at
        inside = inside & (at >= 0) & (at < size[i])
    cells = torch.where(inside, flat, -1).reshape(*out, math.prod(kernel))
    return cells.to(device) if device is not None else cells


def max_pool(
    call: Call,
    ref: Ref,
    kernel: list[int],
    stride: list[int],
    pads: list[int],
    dilation: list[int],
    ceil: bool,
) -> Ref:
    """Append maximum pooling; ``pads``: beginnings, then ends, of every axis."""
    rank = len(kernel)
    out = [
        n_windows(size, k, s, d, (pads[i], pads[i + rank]), ceil)
        for i, (size, k, s, d) in enumerate(
            zip(ref.shape[1:], kernel, stride, dilation, strict=True)
        )
    ]
    cells = _cells(ref.shape[1:], out, kernel, stride, dilation, padding=pads[:rank])
    given = (tuple(v) for v in (kernel, stride, pads[:rank], dilation))
    return call.emit(MaxPool(cells, *given), ref)


def n_windows(size: int, k: int, s: int, d: int, pads: tuple[int, int], ceil: bool) -> int:
    """Number of windows along one axis; those that start in the end padding are dropped."""
    span = size + sum(pads) - d * (k - 1) - 1
    count = (math.ceil(span / s) if ceil else span // s) + 1
    return sum(1 for i in itertools.islice(itertools.count(), count) if i * s < size + pads[0])
