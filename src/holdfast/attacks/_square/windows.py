"""Windows in inputs of any shape: their sides, where they lie, what fills them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks._square.patterns import Pattern, bank
from holdfast.rows import like

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps after which the window's area is halved, for 10,000 queries (section 4.1)."""

SERIES_RATIO = 4
"""A two-dimensional input at least this many times longer than high is (channels, time)."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What all rows share: how inputs of one shape are cut into windows.

    Attributes:
        channels: Number of channels c; a window covers all of them.
        spatial: Lengths of the k other axes; inputs are handled as ``(n, c, *spatial)``.
        sign_shape: Shape of one window's signs: ``(c, 1, ...)``, or one per feature of a vector.
        halvings: Steps after which the window's area is halved.
        sides: Window sides ``(levels, k)`` after that many halvings.
        lengths: ``spatial`` as a tensor.
        place: The coordinates along all spatial axes, one after the other.
        axis_of: Their axes.
        eta: Where windows hold patterns, these: one per level and axis that it is cut along, each
            on a grid with a border of zeros, flattened; else empty.
        strides: Steps in ``eta`` from level to level, cut to cut, and cell to cell per axis.
    """

    channels: int
    spatial: tuple[int, ...]
    sign_shape: tuple[int, ...]
    halvings: Tensor
    sides: Tensor
    lengths: Tensor
    place: Tensor
    axis_of: Tensor
    eta: Tensor
    strides: Tensor

    def split(self, x: Tensor) -> Tensor:
        """``(n, *shape)`` as ``(n, c, *spatial)``."""
        return x.reshape(-1, self.channels, *self.spatial)

    def signs(self, u: Tensor, size: Tensor) -> Tensor:
        """``+size`` or ``-size`` ``(n,)`` by uniform numbers, of ``sign_shape``."""
        u = u.reshape(-1, *self.sign_shape)
        return torch.copysign(like(size, u), u - 0.5)

    def corner(self, u: Tensor, sides: Tensor) -> Tensor:
        """A random first cell of each window ``(n, k)``, uniform over those that fit."""
        k = sides.shape[1]
        return (u[:, :k] * (self.lengths + 1 - sides)).floor()

    def inside(self, corner: Tensor, sides: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Per spatial axis 1 inside the window, else 0, to broadcast with ``(n, c, *spatial)``."""
        half = sides / 2
        centre = (corner + half - 0.5)[:, self.axis_of]
        inside = (self.place - centre).abs() < half[:, self.axis_of]
        return self._by_axis(inside.to(dtype))

    def pattern(self, corner: Tensor, sides: Tensor, level: Tensor, cut: Tensor) -> Tensor:
        """The pattern eta in each row's window ``(n, 1, *spatial)``, zero elsewhere."""
        # cell 0 and the cells from side + 1 on are the border of zeros
        cell = (self.place + 1 - corner[:, self.axis_of]).clamp_min(0.0)
        cell = torch.minimum(cell, (sides + 1)[:, self.axis_of]).to(torch.int32)
        first, *others = self._by_axis(cell * self.strides[2:][self.axis_of])
        table = level.to(torch.int32) * self.strides[0] + cut * self.strides[1]
        index = sum(others, start=first + like(table, first))
        return self.eta.index_select(0, index.flatten()).reshape(index.shape)

    def _by_axis(self, values: Tensor) -> list[Tensor]:
        """``(n, sum of lengths)`` cut by axis, to broadcast with ``(n, c, *spatial)``."""
        k = len(self.spatial)
        shapes = [(-1, *(1,) * (a + 1), self.spatial[a], *(1,) * (k - a - 1)) for a in range(k)]
        parts = values.split(self.spatial, dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@lru_cache(maxsize=16)
def windows_for(
    shape: tuple[int, ...],
    p_init: float,
    stretch: float,
    kind: Pattern | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Windows:
    """The windows for inputs of ``shape``, filled with patterns of this kind."""
    channels, spatial = layout(shape)
    has_pattern = kind is not None
    sides = [window_sides(spatial, p_init / 2**i, has_pattern) for i in range(len(HALVINGS) + 1)]
    table = bank(sides, kind) if has_pattern else np.zeros(0)
    place = [(i, axis) for axis, length in enumerate(spatial) for i in range(length)]
    is_vector = len(shape) == 1
    return Windows(
        channels=channels,
        spatial=spatial,
        sign_shape=(1, *spatial) if is_vector else (channels, *(1,) * len(spatial)),
        halvings=torch.tensor([math.floor(h * stretch) for h in HALVINGS], device=device),
        sides=torch.tensor(sides, dtype=torch.float32, device=device),
        lengths=torch.tensor(spatial, dtype=torch.float32, device=device),
        place=torch.tensor([i for i, _ in place], dtype=torch.float32, device=device),
        axis_of=torch.tensor([axis for _, axis in place], device=device),
        eta=torch.as_tensor(table.reshape(-1), dtype=dtype, device=device),
        strides=torch.tensor(table.strides, dtype=torch.int32, device=device) // table.itemsize,
    )


def layout(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Channels and spatial axes of an input of ``shape``.

    ``(d,)`` is one channel of d features, ``(c, t)`` a series where t >= 4 c, else an image
    ``(h, w)``; more axes are channels first.
    """
    if len(shape) == 1 or (len(shape) == 2 and shape[1] < SERIES_RATIO * shape[0]):
        return 1, shape
    return shape[0], shape[1:]


def window_sides(spatial: tuple[int, ...], p: float, has_pattern: bool) -> tuple[int, ...]:
    """Sides of a window that covers the fraction ``p``: equal, but none longer than its axis.

    Patterns need odd sides of at least three.
    """
    side = round((p * math.prod(spatial)) ** (1 / len(spatial)))
    side = max(side, 3) | 1 if has_pattern else max(side, 1)
    return tuple(min(side, length) for length in spatial)
