"""Square's moves in l1 (Croce and Hein, 2021, arXiv:2103.01208): as in l2, but sparser.

Bumps fall off faster, masses are sums of absolute changes, and ball and box are met by the exact
projection, which takes the smallest changes away. A window of c channels gets c times the mass that
it may keep, so that every move makes the change sparser.
"""

from __future__ import annotations

from torch import Tensor

from holdfast.attacks._domain import width_of
from holdfast.attacks._square.masses import TINY, drawn, tiles
from holdfast.attacks._square.patterns import L1_PATTERN
from holdfast.attacks._square.windows import Windows
from holdfast.engine.random import Rng
from holdfast.perturbations.l1 import L1Ball
from holdfast.rows import like


def start(allowed: L1Ball, windows: Windows, rng: Rng) -> Tensor:
    """Tiles whose mass is the domain's width each, projected."""
    delta = width_of(allowed) * tiles(allowed.x, windows, rng, L1_PATTERN)
    return allowed.project(allowed.x + delta.reshape(allowed.x.shape).to(allowed.x.dtype))


def move_mass(allowed: L1Ball, best: Tensor, windows: Windows, rng: Rng, step: Tensor) -> Tensor:
    """The change of one window moves into another one, as a new pattern."""
    k = len(windows.spatial)
    draw = drawn(windows, rng, step, best.dtype, allowed.radius.new_ones(len(best)))
    delta = windows.split(best - allowed.x)
    old = delta * draw.window
    kept = (delta - old) * (1 - draw.emptied)
    new = draw.pattern + old / (_mass(old, k) + TINY)
    mass = _mass(delta, k)
    unused = (allowed.radius - mass.flatten(1).sum(1)).clamp_min(0.0)
    share = mass - _mass(kept, k) + like(unused, mass) / windows.channels
    moved = kept + new * (windows.channels * share / (_mass(new, k) + TINY))
    return allowed.project(allowed.x + moved.reshape(best.shape))


def _mass(delta: Tensor, n_axes: int) -> Tensor:
    """Sum of absolute changes over the last axes, kept as size one."""
    return delta.abs().sum(tuple(range(-n_axes, 0)), keepdim=True)
