"""The one-dimensional problems behind exact projections onto a norm ball cut with a box."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ROUNDS = 60  # Newton on a piecewise quadratic: one round per active set, a handful in practice


def clipped_l2_scale(d: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """The largest s >= 0 with ``||clip(s d, lower, upper)||_2 <= eps``, capped where all clip.

    ``d``, ``lower <= 0`` and ``upper >= 0`` are ``(n, m)`` float64, ``eps`` ``(n,)`` -> ``(n,)``;
    zero where d is zero.
    Newton from below: with the coordinates clipped at s held at their bounds, the norm is reached
    at sqrt((eps^2 - clipped) / free); that never overshoots and stops after finitely many rounds.
    """
    limit = torch.where(d > 0, upper, -lower)
    size = d.abs()
    total = size.square().sum(1)
    s = torch.where(total > 0, eps / total.sqrt(), 0.0)
    for _ in range(_MAX_ROUNDS):
        is_clipped = s[:, None] * size >= limit
        clipped = torch.where(is_clipped, limit, 0.0).square().sum(1)
        free = torch.where(is_clipped, 0.0, size).square().sum(1)
        room = (eps.square() - clipped).clamp_min(0.0)
        is_free = free > 0
        new = torch.where(is_free, (room / torch.where(is_free, free, 1.0)).sqrt(), s)
        # a row that has converged stays where it is, however many rounds its neighbours need
        grows = new > s * (1 + 1e-14)
        if not bool(grows.any()):
            break
        s = torch.where(grows, new, s)
    return s


def soft_threshold_level(size: Tensor, limit: Tensor, eps: Tensor) -> Tensor:
    """The smallest t >= 0 with ``sum(min(max(size - t, 0), limit)) <= eps``.

    ``size >= 0`` and ``limit >= 0`` are ``(n, m)`` float64, ``eps`` ``(n,)`` -> ``(n,)``. The sum
    is piecewise linear and falls with t; it is followed from the largest breakpoint downwards.
    """
    points = torch.cat([size, size - limit], 1)
    slopes = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    points, order = points.sort(dim=1, descending=True)
    slope = slopes.gather(1, order).cumsum(1)
    gains = slope[:, :-1] * (points[:, :-1] - points[:, 1:])
    value = torch.cat([torch.zeros_like(points[:, :1]), gains.cumsum(1)], 1)
    segment = (value <= eps[:, None]).sum(1, keepdim=True).clamp(1, points.shape[1]) - 1
    steep = slope.gather(1, segment).squeeze(1)
    left = (eps - value.gather(1, segment).squeeze(1)) / steep.clamp_min(1.0)
    level = points.gather(1, segment).squeeze(1) - torch.where(steep > 0, left, 0.0)
    inside = torch.minimum(size, limit).sum(1) <= eps
    return torch.where(inside, 0.0, level.clamp_min(0.0))
