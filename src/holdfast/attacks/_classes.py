"""Which classes an attack aims at, and whether it has arrived: shared by minimal attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Problem


def wrong_classes(problem: Problem, most: int) -> Tensor:
    """The classes that each row goes for ``(n, g)``: its target, or the likeliest wrong ones.

    ``g`` is 1 where every row has a target, else ``most`` or as many as there are.
    """
    target = problem.target[:, None]
    if bool((problem.target >= 0).all()):
        return target.clone()
    others = problem.logits.scatter(1, problem.y[:, None], -torch.inf)
    n = min(most, problem.logits.shape[1] - 1)
    return torch.where(target >= 0, target, others.topk(n, dim=1).indices)


def class_gaps(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """``z_c - z_y`` for every class c of ``classes`` ``(n, g)`` -> ``(n, g)``."""
    return logits.gather(1, classes) - logits.gather(1, y[:, None])


def fools(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """Whether the answer is what the attacker wants ``(n,)``; ``goal`` -1: any wrong one."""
    return goal_margin(logits, y, goal) > 0
