"""Coefficients that are zero outside a small window of a feature map.

One element of a convolution's output depends on a patch of its input, so the coefficients of its
linear bound fill a window that grows slowly from layer to layer. Keeping the window alone saves
memory and time by the ratio of the patch to the whole map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Window(NamedTuple):
    """Rows of windowed coefficients.

    Attributes:
        A: Coefficients ``(r, k, channels, *window)``; zero where the window leaves the map.
        origin: Position of the window's first element in the map ``(r, axes)``, possibly negative.
        sample: Sample of every row ``(r,)``.
    """

    A: Tensor
    origin: Tensor
    sample: Tensor

    def positions(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Flat positions ``(r, *window)`` clamped to the map, and a mask of those inside."""
        flat = self.origin.new_zeros(())
        inside = torch.ones((), dtype=torch.bool, device=self.A.device)
        axes = len(shape)
        for i, size in enumerate(shape):
            along = self.origin[:, i, None] + torch.arange(
                self.A.shape[3 + i], device=self.A.device
            )
            view = (len(along), *[-1 if j == i else 1 for j in range(axes)])
            flat = flat * size + along.clamp(0, size - 1).reshape(view)
            inside = inside & ((along >= 0) & (along < size)).reshape(view)
        return flat, inside

    def gather(self, full: Tensor) -> Tensor:
        """What each window shows of a map ``(n, channels, *spatial)``: like ``A[:, 0]``."""
        flat, _ = self.positions(full.shape[2:])
        picked = full.flatten(2).transpose(1, 2)[self.sample[:, None], flat.flatten(1)]
        return picked.transpose(1, 2).reshape(len(self.A), *self.A.shape[2:])

    def joined(self, other: Window) -> Window | None:
        """The sum of both in one larger window; None unless all rows differ by the same shift."""
        shift = other.origin - self.origin
        if len(shift) and bool((shift != shift[:1]).any()):
            return None
        steps = shift[0].tolist() if len(shift) else [0] * self.origin.shape[1]
        sizes = zip(self.A.shape[3:], other.A.shape[3:], strict=True)
        mine: list[int] = []
        theirs: list[int] = []
        for step, (a, b) in reversed(list(zip(steps, sizes, strict=True))):
            begin, end = min(0, step), max(a, step + b)
            mine += [-begin, end - a]
            theirs += [step - begin, end - step - b]
        first = self.origin + shift.clamp(max=0)
        return Window(pad(self.A, mine) + pad(other.A, theirs), first, self.sample)
