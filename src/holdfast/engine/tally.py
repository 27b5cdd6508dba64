"""What the engine itself keeps of every job, row by row, as the answers come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Problem
from holdfast.engine.jobs import Job
from holdfast.engine.judge import reached
from holdfast.rows import like
from holdfast.threat import AllowedSet


@dataclass(frozen=True, slots=True)
class Tally:
    """One row per job."""

    y: Tensor
    goal: Tensor
    allowed: AllowedSet
    forward: Tensor
    backward: Tensor
    zero_gradients: Tensor
    rejected: Tensor
    refused_margin: Tensor
    margin: Tensor
    loss: Tensor
    confidence: Tensor
    queries: Tensor
    max_passes: Tensor
    max_forward: Tensor
    best: Tensor
    best_score: Tensor


def fresh(jobs: Sequence[Job], problem: Problem, goal: Tensor, keeps_best: bool) -> Tally:
    """The tally of new jobs; ``keeps_best``: with the best point met."""
    y, x = problem.y, problem.x
    zero = torch.zeros_like(y)
    low = torch.full(y.shape, -torch.inf, device=y.device)
    return Tally(
        y=y,
        goal=goal,
        allowed=problem.allowed,
        forward=zero,
        backward=zero.clone(),
        zero_gradients=zero.clone(),
        rejected=zero.clone(),
        refused_margin=low,
        margin=low.clone(),
        loss=low.clone(),
        confidence=torch.ones_like(low),
        queries=zero.clone(),
        max_passes=torch.tensor([job.max_passes for job in jobs], device=y.device),
        max_forward=torch.tensor([job.max_forward for job in jobs], device=y.device),
        best=x.clone() if keeps_best else x.new_empty(len(x), 0),
        best_score=low.clone(),
    )


def counted(
    tally: Tally, answer: Answer, paid: tuple[int, int], counts: Tensor | None
) -> tuple[Tally, Answer]:
    """Passes, the extremes of margin, loss and confidence met, and gradients without NaN.

    ``counts`` ``(n,)`` says which points are allowed, for attacks that leave the set; None: all.
    """
    n_forward, n_backward = paid
    logits = answer.logits.float()
    log_p = logits.log_softmax(1).gather(1, tally.y[:, None]).squeeze(1)
    size = goal_margin(logits, tally.y, tally.goal)
    if counts is not None:
        size = torch.where(counts, size, -torch.inf)
        log_p = torch.where(counts, log_p, 0.0)
    backward, zero_gradients = tally.backward, tally.zero_gradients
    if n_backward:
        length = torch.linalg.vector_norm(answer.gradients.flatten(1), ord=1, dim=1)
        is_finite = torch.isfinite(length)
        if length.device.type != "cpu" or not bool(is_finite.all()):  # asking costs more elsewhere
            answer = replace(answer, gradients=answer.gradients.nan_to_num(0.0, 0.0, 0.0))
        backward, zero_gradients = (
            backward + n_backward,
            zero_gradients + ~(is_finite & (length > 0)),
        )
    tally = replace(
        tally,
        queries=tally.queries + 1,
        forward=tally.forward + n_forward,
        backward=backward,
        zero_gradients=zero_gradients,
        margin=tally.margin.fmax(size),
        loss=tally.loss.fmax(-log_p),
        confidence=tally.confidence.fmin(log_p.exp()),
    )
    return tally, answer


def has_spent(tally: Tally, paid: tuple[int, int]) -> Tensor:
    """Whether one more query would go over the job's budget."""
    forward = tally.forward + paid[0]
    passes = forward + tally.backward + paid[1]
    return (passes > tally.max_passes) | (forward > tally.max_forward)


def kept(tally: Tally, points: Tensor, logits: Tensor, is_minimal: bool) -> Tally:
    """The best allowed point so far: largest margin, or the nearest that fools."""
    score = goal_margin(logits.float(), tally.y, tally.goal)
    if is_minimal:
        fools = reached(logits, tally.y, tally.goal)
        score = torch.where(fools, -tally.allowed.distance(points).float(), -torch.inf)
    is_better = (score > tally.best_score) & tally.allowed.contains(points)
    return replace(
        tally,
        best=torch.where(like(is_better, points), points, tally.best),
        best_score=torch.where(is_better, score, tally.best_score),
    )
