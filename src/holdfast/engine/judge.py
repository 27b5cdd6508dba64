"""The judge: nothing counts as broken until it was replayed here.

A claim is accepted if the input was changed at all, if the change is allowed, and if the model, in
float32 and evaluation mode, gives the wanted answer twice: in a batch and on its own. Where the
search ran the model as plainly as that, its answer is the first of the two; the second is always
fresh. Where many fall at once, those that are far over the boundary get the second among a few
others instead: how much an answer can hang on its neighbours has been measured. For a random model
both are the majority of fresh draws, the second one of many more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.model import Model
from holdfast.threat import AllowedSet

N_DRAWS = 20  # fresh draws per verdict on a random model; a majority fools it
N_CONFIRMING = 100  # and of so many more: who claims often enough wins one small vote by luck
_LEVELS = 255.0  # of an 8-bit channel
_FEW = 16  # rows that are replayed together
NEIGHBOURS = 1e-3
"""By how much scores may hang on the other inputs of a call, relative to 1 + the largest one."""


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
        logits: Answers ``(n, k)`` in a batch; zeros for points that are not allowed.
        forward: Passes of each row ``(n,)``.
    """

    accepted: Tensor
    points: Tensor
    logits: Tensor
    forward: Tensor


def judge(
    model: Model,
    points: Tensor,
    allowed: AllowedSet,
    y: Tensor,
    goal: Tensor,
    quantise: bool = False,
    known: Tensor | None = None,
) -> Judgement:
    """Replay claims ``points`` ``(n, *shape)``, at two batch sizes.

    Args:
        model: Inside a session.
        points: Changed inputs that are said to fool the model.
        allowed: The allowed changes of each row.
        y: Labels ``(n,)``.
        goal: Wanted class ``(n,)``, or -1.
        quantise: Judge the nearest allowed 8-bit input instead.
        known: Answers ``(n, k)`` to these very points, if the model gave them in float32 in a
            batch; they count as the first answer. Not used for a random model.
    """
    if quantise:
        points, known = quantised(points, allowed), None
    is_changed = (points != allowed.x).flatten(1).any(1)
    accepted = allowed.contains(points) & is_changed
    logits = torch.zeros(len(points), model.n_classes, device=points.device)
    forward = torch.zeros_like(y)
    rows = accepted.nonzero().squeeze(1)
    for second in (False, True):
        if len(rows) == 0:
            break
        before = model.passes.forward
        if second:
            fresh = _confirmed(model, points[rows], logits[rows], y[rows], goal[rows])
        elif known is None or model.is_random:
            fresh = logits[rows] = answers(model, points[rows])
        else:
            fresh = logits[rows] = known[rows]
        forward[rows] += (model.passes.forward - before) // len(rows)
        accepted[rows] = reached(fresh, y[rows], goal[rows])
        rows = accepted.nonzero().squeeze(1)
    return Judgement(accepted, points, logits, forward)


def _confirmed(model: Model, points: Tensor, first: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """The second answer ``(n, k)``, where ``first`` was the first one."""
    if model.is_random:
        return answers(model, points, N_CONFIRMING)
    is_far = goal_margin(first, y, goal) > 2 * NEIGHBOURS * (1 + first.abs().amax(1))
    if int(is_far.sum()) <= _FEW:
        return model.replay(points)
    fresh = torch.empty_like(first)
    for rows, size in ((is_far, _FEW), (~is_far, 1)):
        if bool(rows.any()):
            fresh[rows] = model.replay(points[rows], size)
    return fresh


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
