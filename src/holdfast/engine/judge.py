"""The judge: nothing counts as broken until it was replayed here.

A claim is accepted if the input was changed at all, if the change is allowed, and if the model, run
afresh in float32 and evaluation mode, gives the wanted answer twice: in a batch and on its own. For
a random model each answer is the majority of fresh draws, and the second one of many more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.model import Model
from holdfast.threat import AllowedSet

N_DRAWS = 20  # fresh draws per verdict on a random model; a majority fools it
N_CONFIRMING = 100  # and of so many more: who claims often enough wins one small vote by luck
_LEVELS = 255.0  # of an 8-bit channel


def reached(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """Whether the answer is wrong ``(n,)``, and what the attacker wants where ``goal`` >= 0."""
    answer = logits.argmax(1)
    return (answer != y) & ((goal < 0) | (answer == goal))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of some claims; one row each.

    Attributes:
        accepted: ``(n,)`` bool.
        points: The judged inputs ``(n, *shape)``: the claimed ones, quantised if so asked.
        logits: Fresh answers ``(n, k)``; zeros for points that are not allowed.
    """

    accepted: Tensor
    points: Tensor
    logits: Tensor


def judge(
    model: Model,
    points: Tensor,
    allowed: AllowedSet,
    y: Tensor,
    goal: Tensor,
    quantise: bool = False,
) -> Judgement:
    """Replay claims ``points`` ``(n, *shape)``, at two batch sizes.

    Args:
        model: Inside a session.
        points: Changed inputs that are said to fool the model.
        allowed: The allowed changes of each row.
        y: Labels ``(n,)``.
        goal: Wanted class ``(n,)``, or -1.
        quantise: Judge the nearest allowed 8-bit input instead.
    """
    if quantise:
        points = quantised(points, allowed)
    is_changed = (points != allowed.x).flatten(1).any(1)
    accepted = allowed.contains(points) & is_changed
    logits = torch.zeros(len(points), model.n_classes, device=points.device)
    inside = accepted.nonzero().squeeze(1)
    if len(inside) == 0:
        return Judgement(accepted, points, logits)
    chosen = points[inside]
    fresh = answers(model, chosen)
    accepted[inside] = reached(fresh, y[inside], goal[inside])
    logits[inside] = fresh
    again = accepted.nonzero().squeeze(1)
    if len(again) == 0:
        return Judgement(accepted, points, logits)
    second = answers(model, points[again], N_CONFIRMING) if model.is_random else None
    second = model.replay(points[again]) if second is None else second
    accepted[again] = reached(second, y[again], goal[again])
    return Judgement(accepted, points, logits)


def answers(model: Model, x: Tensor, n_draws: int = N_DRAWS) -> Tensor:
    """Fresh logits ``(n, k)``; for a random model the mean of draws, with its majority on top."""
    if not model.is_random:
        return model.logits(x)
    usual, model.draws = model.draws, 1  # a vote is one answer, not the mean of several
    try:
        draws = torch.stack([model.logits(x) for _ in range(n_draws)])
    finally:
        model.draws = usual
    votes = torch.nn.functional.one_hot(draws.argmax(2), draws.shape[2]).float().mean(0)
    mean = draws.mean(0)
    # softmax of this keeps the mean's shape while its largest entry is the majority's class
    winner = votes.argmax(1, keepdim=True)
    top = mean.amax(1, keepdim=True)
    return mean.scatter(1, winner, torch.maximum(top, mean.gather(1, winner)) + 1e-6)


def quantised(points: Tensor, allowed: AllowedSet) -> Tensor:
    """The nearest 8-bit inputs; where rounding leaves the set, one level back towards x.

    Inputs are taken to be in [0, 1] with 255 steps.
    """
    levels = (points * _LEVELS).round()
    rounded = levels / _LEVELS
    outside = ~allowed.contains(rounded)
    if not bool(outside.any()):
        return rounded
    x = allowed.x
    towards = torch.where(points > x, (points * _LEVELS).floor(), (points * _LEVELS).ceil())
    careful = torch.where(points == x, x, towards / _LEVELS)
    rows = outside.reshape(-1, *(1,) * (points.ndim - 1))
    return torch.where(rows, careful, rounded)
