"""Fewer changed coordinates: exchanges and returns, after the search for the smallest l0 change.

Each round orders coordinates by what the margin's gradient says that changing them is worth, and a
bisection over forward passes finds how few of the first ones fool. Rounds differ in where the
gradient is taken, in the values given, and in how much those changed already are preferred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Objective, Query
from holdfast.engine.judge import reached
from holdfast.evaluation._nearest import JUDGING, NOBODY, Search
from holdfast.rows import like

STEPS = 5  # of a bisection
COST = 2 + STEPS + JUDGING  # passes of one round
STAYS = 2.0  # times as much counts a coordinate that is changed already
ROUNDS = ("halfway", "freely", "warily", "back")


def thin(search: Search, rounds: int) -> None:
    """Look ``rounds`` times for fewer coordinates that fool, :data:`COST` passes each.

    ``halfway``: the gradient is that between x and the input known; ``freely``: any coordinates may
    take the place of those changed; ``warily``: those changed are preferred; ``back``: coordinates
    are given back only, and the others keep their values.
    """
    for number in range(rounds):
        rows = ((search.distance > 1) & search.distance.isfinite()).nonzero().squeeze(1)
        if len(rows) > 0:
            _round(search, rows, ROUNDS[number % len(ROUNDS)])


def _round(search: Search, rows: Tensor, way: str) -> None:
    x, known = search.x[rows], search.x_adv[rows]
    is_changed = (known != x).flatten(1)
    objective = Objective(goal_margin, (search.y[rows], search.goal[rows]))
    point = torch.lerp(x, known, 0.5) if way == "halfway" else known
    (answer,) = search.model.answer([Query(point, objective)])
    values = known if way == "back" else _ends(search, x, answer.gradients)
    gain = (answer.gradients * (values - x)).flatten(1)
    if way == "back":
        gain = torch.where(is_changed, gain, -torch.inf)
    elif way != "freely":
        gain = torch.where(is_changed, STAYS * gain, gain)
    search.forward[rows] += 1
    search.backward[rows] += 1
    nearest = _fewest(search, rows, values, gain)
    owner = search.found_by[rows]
    is_better = search.offer(rows, nearest, NOBODY)
    search.found_by[rows[is_better]] = owner[is_better]


def _ends(search: Search, x: Tensor, gradient: Tensor) -> Tensor:
    """The end of the domain that each coordinate's gradient points to."""
    lower, upper = search.model.domain.tensors(x)
    return torch.where(gradient > 0, upper, lower).expand_as(x)


def _fewest(search: Search, rows: Tensor, values: Tensor, gain: Tensor) -> Tensor:
    """The input with the fewest coordinates of largest gain at their ``values`` that fools.

    Where none with fewer than now was found, the input known.
    """
    x, y, goal = search.x[rows], search.y[rows], search.goal[rows]
    rank = gain.argsort(stable=True, dim=1, descending=True).argsort(1)
    low, high = torch.zeros_like(search.distance[rows]), search.distance[rows].clone()
    nearest = search.x_adv[rows]
    for _ in range(STEPS):
        middle = ((low + high) / 2).ceil().minimum(high - 1).maximum(low)
        z = torch.where((rank < middle[:, None]).reshape(x.shape), values, x)
        won = reached(search.model.logits(z), y, goal) & (middle < high)
        nearest = torch.where(like(won, z), z, nearest)
        low, high = torch.where(won, low, middle), torch.where(won, middle, high)
    search.forward[rows] += STEPS
    return nearest
