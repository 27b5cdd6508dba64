"""What Square's moves in l2 and l1 share: a start of tiles, and a mass that changes windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from holdfast.attacks._square.patterns import Pattern, tiled
from holdfast.attacks._square.windows import Windows
from holdfast.engine.random import Rng

TINY = 1e-12  # keeps ratios of lengths finite, as in the reference code


def tiles(x: Tensor, windows: Windows, rng: Rng, kind: Pattern) -> Tensor:
    """A grid of about five patterns along each axis, of random sign (section 4.4)."""
    pattern, tile_of = tiled(windows.spatial, kind)
    cut = rng.fold(0).integers(len(windows.spatial))
    delta = torch.as_tensor(pattern, dtype=x.dtype, device=x.device)[cut].unsqueeze(1)
    if windows.sign_shape == (1, *windows.spatial):
        return delta * rng.fold(1).sign(windows.sign_shape, x.dtype)
    counts = tuple(int(index.max()) + 1 for index in tile_of)
    sign = rng.fold(1).sign((windows.channels, *counts), x.dtype)
    for axis, index in enumerate(tile_of):
        sign = sign.index_select(2 + axis, torch.as_tensor(index, device=x.device))
    return delta * sign


@dataclass(frozen=True, slots=True)
class Draw:
    """One window to fill and one to empty ``(n, 1, *spatial)``.

    Attributes:
        window: 1 inside the window to fill, else 0.
        emptied: 1 inside the other.
        pattern: The pattern of random sign in the first.
    """

    window: Tensor
    emptied: Tensor
    pattern: Tensor


def n_numbers(windows: Windows) -> int:
    """Random numbers of one move."""
    return 2 * len(windows.spatial) + 1 + math.prod(windows.sign_shape)


def drawn(windows: Windows, rng: Rng, step: Tensor, dtype: torch.dtype, size: Tensor) -> Draw:
    """Two windows, anywhere; ``size`` ``(n,)`` is what the pattern is multiplied with."""
    k = len(windows.spatial)
    u = rng.uniform((n_numbers(windows),))
    level = torch.bucketize(step, windows.halvings)
    sides = windows.sides[level]
    corner = windows.corner(u[:, :k], sides)
    window = reduce(torch.mul, windows.inside(corner, sides, dtype))
    other = windows.corner(u[:, k:], sides)
    emptied = reduce(torch.mul, windows.inside(other, sides, dtype))
    eta = windows.pattern(corner, sides, level, (u[:, 2 * k] * k).to(torch.int32))
    sign = windows.signs(u[:, 2 * k + 1 :], size)
    return Draw(window, emptied, eta * sign)
