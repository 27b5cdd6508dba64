"""How small a change still fools the model: bisection between x and its adversarial input.

Cheap (a few forward passes per broken sample) and honest: every radius is an upper bound, reached
by an input that was run through the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.engine.judge import reached
from holdfast.model import Model
from holdfast.threat import AllowedSet


def radii(
    model: Model, allowed: AllowedSet, x_adv: Tensor, y: Tensor, goal: Tensor, steps: int
) -> Tensor:
    """The smallest fooling distance met on the way from ``x_adv`` to x, ``(n,)`` float64.

    Args:
        model: Inside a session.
        allowed: The allowed changes of each row.
        x_adv: Inputs ``(n, *shape)`` that fool the model.
        y: Labels ``(n,)``.
        goal: Wanted class ``(n,)``, or -1.
        steps: Bisection steps, one forward pass each.
    """
    best = allowed.distance(x_adv)
    low, high = torch.zeros_like(best), torch.ones_like(best)
    for _ in range(steps):
        middle = (low + high) / 2
        z = allowed.towards(x_adv, middle)
        fools = reached(model.logits(z), y, goal)
        best = torch.where(fools, best.minimum(allowed.distance(z)), best)
        low, high = torch.where(fools, low, middle), torch.where(fools, middle, high)
    return best


def pending(is_broken: Tensor, radius: Tensor, size: int) -> Iterator[list[int]]:
    """Broken samples without a radius, in pieces."""
    rows = (is_broken & radius.isnan()).nonzero().squeeze(1).tolist()
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
