"""Square's moves in l2: patterns that take over the mass of two windows."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks._square.masses import TINY, drawn, tiles
from holdfast.attacks._square.patterns import L2_PATTERN
from holdfast.attacks._square.windows import Windows
from holdfast.engine.random import Rng
from holdfast.perturbations.l2 import L2Ball
from holdfast.rows import like


def start(allowed: L2Ball, windows: Windows, rng: Rng) -> Tensor:
    """Tiles on the ball's surface."""
    return _at_radius(allowed, tiles(allowed.x, windows, rng, L2_PATTERN))


def move_mass(allowed: L2Ball, best: Tensor, windows: Windows, rng: Rng, step: Tensor) -> Tensor:
    """The change of one window moves into another one, as a new pattern (algorithm 3)."""
    k = len(windows.spatial)
    draw = drawn(windows, rng, step, best.dtype, torch.ones_like(allowed.radius))
    delta = windows.split(best - allowed.x)
    old = delta * draw.window
    kept = delta - old
    kept = torch.addcmul(kept, kept, draw.emptied, value=-1)
    new = torch.addcdiv(draw.pattern, old, _norm(old, k) + TINY)
    square = _norm(delta, k).square()
    unused = (allowed.radius.square() - square.flatten(1).sum(1)).clamp_min(0.0)
    length = square - _norm(kept, k).square() + like(unused, square) / windows.channels
    scale = length.clamp_min(0.0).sqrt() / (_norm(new, k) + TINY)
    return _at_radius(allowed, torch.addcmul(kept, new, scale))


def _at_radius(allowed: L2Ball, delta: Tensor) -> Tensor:
    """``x + delta``, scaled to the ball's surface, then cut with the box."""
    scale = like(allowed.radius, delta) / (_norm(delta, delta.ndim - 1) + TINY)
    points = torch.addcmul(allowed.x.reshape(delta.shape), delta, scale).reshape(allowed.x.shape)
    return torch.minimum(torch.maximum(points, allowed.box_lower), allowed.box_upper)


def _norm(delta: Tensor, n_axes: int) -> Tensor:
    """Euclidean norm over the last axes, kept as size one.

    By a sum of squares: torch adds those pairwise, but one by one in ``norm``, whose error at a
    million coordinates would leave the ball.
    """
    axes = tuple(range(-n_axes, 0))
    return delta.square().sum(axes, keepdim=True).sqrt()
