"""Pooling over windows that are not all of one size."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref
from holdfast.graphs.operators.max_pool import n_windows
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sum import reduce_sum
from holdfast.graphs.operators.take import take

Range = tuple[int, int]  # first position, and one past the last


def windowed(call: Call, ref: Ref, axes: list[list[Range]], repeat: bool) -> tuple[Ref, Tensor]:
    """Append windows ``(channels, *out, k)`` of any sizes, and how many cells each has.

    What is missing in a window is a zero, or with ``repeat`` its first cell again.
    """
    positions = torch.arange(torch.Size(ref.shape).numel()).reshape(ref.shape)
    out = [len(ranges) for ranges in axes]
    most = math.prod(max(b - a for a, b in ranges) for ranges in axes)
    windows, counts = [], []
    for choice in itertools.product(*axes):
        cells = positions[(slice(None), *(slice(a, b) for a, b in choice))].flatten(1)
        missing = most - cells.shape[1]
        fill = cells[:, :1] if repeat else cells.new_full((1, 1), -1)
        windows.append(torch.cat([cells, fill.expand(len(cells), missing)], 1))
        counts.append(cells.shape[1])
    index = torch.stack(windows, 1).reshape(ref.shape[0], *out, most)
    return take(call, ref, index), torch.tensor(counts).reshape(*out)


def averages(call: Call, ref: Ref, axes: list[list[Range]], counts: Tensor | None = None) -> Ref:
    """Append the average of each window; ``counts``: to divide by, if not the number of cells."""
    windows, cells = windowed(call, ref, axes, repeat=False)
    total = reduce_sum(call, windows, [len(windows.shape) - 1], keep=False)
    divisor = (cells if counts is None else counts).double()
    return scale(call, total, (1 / divisor)[None, None], 0.0)


def ragged_averages(
    call: Call,
    ref: Ref,
    kernel: list[int],
    stride: list[int],
    pads: list[int],
    count_padding: bool,
    divisor: int | None,
) -> Ref:
    """Append average pooling whose last windows are cut off at the end of the padding."""
    rank = len(kernel)
    axes: list[list[Range]] = []
    counts = torch.ones((), dtype=torch.double)
    for i, (size, k, s) in enumerate(zip(ref.shape[1:], kernel, stride, strict=True)):
        begin, end = pads[i], pads[i + rank]
        starts = [j * s - begin for j in range(n_windows(size, k, s, 1, (begin, end), True))]
        axes.append([(max(a, 0), min(a + k, size)) for a in starts])
        widths = [min(a + k, size + end) - a for a in starts]
        counts = counts[..., None] * torch.tensor(widths, dtype=torch.double)
    if divisor:
        counts = torch.full_like(counts, divisor)
    return averages(call, ref, axes, counts if count_padding or divisor else None)
