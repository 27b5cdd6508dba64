"""Square's moves in linf, and in any set that its hull describes: windows go to the corners."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from holdfast.attacks._square.windows import Windows
from holdfast.engine.random import Rng
from holdfast.threat import AllowedSet


def stripes(allowed: AllowedSet, windows: Windows, rng: Rng) -> Tensor:
    """Corners of the ball with one sign per channel and column (section 4.3)."""
    lower, upper = allowed.hull()
    ones = (1,) * (len(windows.spatial) - 1)
    sign = rng.sign((windows.channels, *ones, windows.spatial[-1]))
    cells = (len(sign), windows.channels, *windows.spatial)
    up = (sign > 0).expand(cells).reshape(lower.shape)
    return torch.where(up, upper, lower)


def n_numbers(windows: Windows) -> int:
    """Random numbers of one move."""
    return len(windows.spatial) + math.prod(windows.sign_shape)


def repaint(allowed: AllowedSet, best: Tensor, windows: Windows, rng: Rng, step: Tensor) -> Tensor:
    """One window of ``best`` moves to a corner of the ball, one sign per channel (algorithm 2)."""
    k = len(windows.spatial)
    u = rng.uniform((n_numbers(windows),))
    sides = windows.sides[torch.bucketize(step, windows.halvings)]
    *inside, last = windows.inside(windows.corner(u[:, :k], sides), sides, best.dtype)
    # twice the diameter: the clamp below ends exactly at the bounds, whatever the rounding
    push = reduce(torch.mul, inside, windows.signs(u[:, k:], 4 * allowed.radius))
    moved = torch.addcmul(windows.split(best), push, last).reshape(best.shape)
    return torch.clamp(moved, *allowed.hull())
