"""What is allowed and what is best, computed apart from the threats' own code, in float64 numpy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from torch import Tensor

Array = NDArray[np.float64]


def excess(
    points: Tensor, x: Tensor, norm: str, eps: float, box: tuple[float, float] = (0.0, 1.0)
) -> Array:
    """How far each point ``(q, *shape)`` is beyond the ball around its ``x`` or the box ``(q,)``.

    Zero or less: allowed. The box is exact. The ball grants two roundings of every coordinate and
    of the radius: with d = z - x that is ``||2 u (|x| + |d|)||`` for the unit roundoff u.
    """
    z, clean = flat(points), flat(x)
    d = np.abs(z - clean)
    unit = torch.finfo(points.dtype).eps
    slack = 2 * unit * (length(np.abs(clean) + d, norm) + eps) if norm != "l0" else 0.0
    beyond_box = np.maximum(box[0] - z, z - box[1]).max(1, initial=-np.inf)
    worst = np.maximum(length(d, norm) - eps - slack, beyond_box)
    return np.where(np.isfinite(z).all(1), worst, np.inf)


def length(d: Array, norm: str) -> Array:
    """The size of changes ``(q, m)`` in a norm ``(q,)``."""
    if norm == "linf":
        return np.abs(d).max(1, initial=0.0)
    if norm == "l2":
        return np.sqrt((d * d).sum(1))
    return np.abs(d).sum(1) if norm == "l1" else (d != 0).sum(1).astype(np.float64)


def largest_gain(gradient: Array, x: Array, norm: str, eps: float) -> float:
    """``max <gradient, z - x>`` over the ball of ``eps`` around ``x`` ``(m,)`` within [0, 1]."""
    room = np.where(gradient > 0, 1.0 - x, x)
    size = np.abs(gradient)
    if norm == "linf":
        return float((size * np.minimum(eps, room)).sum())
    if norm == "l2":
        return float((size * _l2_change(size, room, eps)).sum())
    order = np.argsort(-size if norm == "l1" else -size * room, kind="stable")
    if norm == "l0":
        return float((size * room)[order][: int(eps)].sum())
    before = np.cumsum(room[order]) - room[order]
    return float((size[order] * np.clip(eps - before, 0.0, room[order])).sum())


def _l2_change(size: Array, room: Array, eps: float) -> Array:
    """By the optimality conditions ``min(s size, room)`` with the s that uses up the ball."""
    everything = float((room[size > 0] / size[size > 0]).max(initial=0.0))

    def left(s: float) -> float:
        return float(np.linalg.norm(np.minimum(s * size, room))) - eps

    s = everything
    if left(everything) > 0:
        s = root_scalar(left, bracket=(0.0, everything), xtol=1e-15).root
    return np.minimum(s * size, room)


def smallest_radius(gradient: Array, x: Array, norm: str, needed: float) -> float:
    """The smallest eps whose :func:`largest_gain` is ``needed``: the distance to a hyperplane.

    Infinite where the whole box does not reach it.
    """
    widest = float(max(1, x.size))
    if largest_gain(gradient, x, norm, widest) < needed:
        return np.inf
    if norm == "l0":
        sizes = range(x.size + 1)
        return float(next(k for k in sizes if largest_gain(gradient, x, norm, k) >= needed))

    def gap(eps: float) -> float:
        return largest_gain(gradient, x, norm, eps) - needed

    return float(root_scalar(gap, bracket=(0.0, widest), xtol=1e-12).root)


def grid(x: Array, norm: str, eps: float, n: int = 161) -> Array:
    """Points that cover the allowed set around ``x`` ``(2,)`` evenly, its border included."""
    if norm == "l0":
        line, still = np.linspace(0.0, 1.0, n * n // 2), np.zeros(n * n // 2)
        across = np.stack([line, still + x[1]], 1)
        return np.concatenate([across, np.stack([still + x[0], line], 1)])
    side = np.linspace(-1.0, 1.0, n)
    a, b = (axis.ravel() for axis in np.meshgrid(side, side))
    square = np.stack([a, b], 1)
    # a square of rings, shrunk ring by ring onto the rings of the ball
    ring = np.abs(square).max(1)
    size = length(square, norm)
    ball = square * np.divide(ring, size, out=np.zeros_like(ring), where=size > 0)[:, None]
    return np.clip(x + eps * ball, 0.0, 1.0)  # towards x along each axis: still in the ball


def flat(points: Tensor) -> Array:
    """``(n, *shape)`` -> ``(n, m)`` in float64."""
    return points.detach().double().flatten(1).numpy()
