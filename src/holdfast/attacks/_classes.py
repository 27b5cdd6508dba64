"""Which classes an attack aims at, and whether it has arrived: shared by minimal attacks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from holdfast.attacks._losses import best_other, goal_margin
from holdfast.attacks.base import Objective, Problem


def n_aims(problem: Problem, most: int) -> int:
    """Wrong classes looked at together: 1 where every row has a target."""
    if bool((problem.target >= 0).all()):
        return 1
    return min(most, problem.logits.shape[1] - 1)


def goal_of(problem: Problem) -> Tensor:
    """The class that the attacker wants ``(n,)``, or -1 for any wrong one."""
    return problem.target if problem.goal is None else problem.goal


def class_gaps(logits: Tensor, y: Tensor, target: Tensor, goal: Tensor, *, width: int) -> Tensor:
    """``z_c - z_y`` of the ``width`` likeliest wrong classes c, or of the target ``(n, width)``.

    Where the attacker wants the target itself, its rival is not the label alone but whichever other
    class is on top.
    """
    top = logits.scatter(1, y[:, None], -torch.inf).topk(width, dim=1).indices
    classes = torch.where(target[:, None] >= 0, target[:, None], top)
    own = logits.gather(1, y[:, None])
    rival = best_other(logits, goal.clamp_min(0))[:, None]
    return logits.gather(1, classes) - torch.where(goal[:, None] >= 0, rival, own)


def gaps_of(y: Tensor, target: Tensor, goal: Tensor, width: int) -> Objective:
    """:func:`class_gaps` as an objective, with a gradient for each class."""
    return Objective(partial(class_gaps, width=width), (y, target, goal), width=width)


def fools(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """Whether the answer is what the attacker wants ``(n,)``; ``goal`` -1: any wrong one."""
    return goal_margin(logits, y, goal) > 0
