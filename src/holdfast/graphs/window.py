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
        places: What ``positions`` tells of the map that the window lies over, if looked up before.
    """

    A: Tensor
    origin: Tensor
    sample: Tensor
    places: tuple[Tensor, Tensor] | None = None

    def located(self, shape: Sequence[int]) -> Window:
        """The window with its positions at hand."""
        return self._replace(places=self.positions(shape))

    def positions(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Flat positions ``(r, *window)`` clamped to the map, and a mask of those inside."""
        if self.places is not None:
            return self.places
        flat = self.origin.new_zeros(())
        inside = torch.ones((), dtype=torch.bool, device=self.A.device)
        axes = len(shape)
        for i, size in enumerate(shape):
            along = self.origin[:, i, None] + torch.arange(
                self.A.shape[3 + i], device=self.A.device
            )
            view = (len(along), *[along.shape[1] if j == i else 1 for j in range(axes)])
            flat = flat * size + along.clamp(0, size - 1).reshape(view)
            inside = inside & ((along >= 0) & (along < size)).reshape(view)
        return flat, inside

    def gather(self, full: Tensor) -> Tensor:
        """What each window shows of a map ``(n, channels, *spatial)``: like ``A[:, 0]``."""
        return self.gather_all(full)[0]

    def gather_all(self, *maps: Tensor) -> list[Tensor]:
        """What each window shows of several maps of one shape."""
        first = maps[0]
        flat = self.positions(first.shape[2:])[0].flatten(1)
        size = first.shape[2:].numel()
        # One look-up for all: maps and channels side by side, samples and positions as rows.
        table = torch.cat([m.flatten(2) for m in maps], 1).transpose(1, 2)
        table = table.reshape(-1, table.shape[2])
        picked = table[(self.sample[:, None] * size + flat).flatten()]
        picked = picked.reshape(len(self.A), flat.shape[1], -1).transpose(1, 2)
        return [
            part.reshape(len(self.A), *self.A.shape[2:]) for part in picked.split(first.shape[1], 1)
        ]

    def rows(self, index: Tensor) -> Window:
        """The rows at ``index``."""
        places = self.places
        if places is not None:
            places = places[0][index], places[1][index]
        return Window(self.A[index], self.origin[index], self.sample[index], places)

    def spread(self, shape: Sequence[int]) -> Tensor:
        """The same coefficients over a whole map ``shape``: ``(r, k, *shape)``."""
        return self.added(self.A.new_zeros(*self.A.shape[:2], *shape))

    def added(self, full: Tensor) -> Tensor:
        """The coefficients added to those of whole maps ``(r, k, channels, *spatial)``."""
        flat, inside = self.positions(full.shape[3:])
        values = (self.A * inside[:, None, None]).flatten(3)
        index = flat.flatten(1)[:, None, None].expand_as(values)
        return full.flatten(3).scatter_add(3, index, values).reshape(full.shape)

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
