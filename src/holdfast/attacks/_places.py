"""Sets of coordinates drawn at random, and what is written into them: for attacks in l0."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks._domain import ends_of
from holdfast.threat import AllowedSet


def drawn_from(among: Tensor, bits: Tensor, count: Tensor) -> Tensor:
    """A random ``count`` ``(n,)`` of the marked places ``(n, m)``, or all where there are fewer."""
    order = torch.where(among, bits & torch.iinfo(torch.int64).max, -1)
    most = min(int(count.max()), order.shape[1]) if len(count) else 0
    key, index = order.topk(most, dim=1)
    rank = torch.arange(most, device=index.device)
    chosen = (rank < count[:, None]) & (key >= 0)
    return torch.zeros_like(among).scatter_(1, index, chosen)


def painted(allowed: AllowedSet, points: Tensor, places: Tensor, bits: Tensor) -> Tensor:
    """``points`` with a random end of the domain in these places, never the clean value."""
    x = allowed.x
    lower, upper = ends_of(allowed)
    is_up = (bits & 1).bool().reshape(x.shape)
    is_up = (is_up | (x == lower)) & (x != upper)
    return torch.where(places.reshape(x.shape), torch.where(is_up, upper, lower), points)
