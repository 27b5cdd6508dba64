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

_MEMORY = 0.8  # of the running share of answers that fooled a random model
_FIRST_WAIT = 8  # queries after a refused claim on a random model; doubled by every further one


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
    recent: Tensor
    waited: Tensor


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
        recent=torch.full_like(low, 0.5),
        waited=zero.clone(),
    )


def counted(
    tally: Tally, answer: Answer, paid: tuple[int, int], counts: Tensor | None
) -> tuple[Tally, Answer, Tensor]:
    """Passes, the extremes of margin, loss and confidence met; gradients without NaN; the margins.

    ``counts`` ``(n,)`` says which points are allowed, for attacks that leave the set; None: all.
    Margins ``(n,)`` of the others are minus infinity.
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
    return tally, answer, size


def passed_over(tally: Tally, logits: Tensor, n: Tensor) -> Tally:
    """The first ``n`` ``(m,)`` of a job's answers ``(m, k, c)``, that changed nothing for it."""
    is_over = torch.arange(logits.shape[1], device=n.device) < n[:, None]
    flat, copies = logits.float().flatten(0, 1), logits.shape[1]
    y, goal = (rows.repeat_interleave(copies) for rows in (tally.y, tally.goal))
    size = goal_margin(flat, y, goal).reshape(is_over.shape)
    log_p = flat.log_softmax(1).gather(1, y[:, None]).reshape(is_over.shape)
    size = torch.where(is_over, size, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    log_p = torch.where(is_over, log_p, 0.0)
    return replace(
        tally,
        queries=tally.queries + n,
        forward=tally.forward + n,
        margin=tally.margin.fmax(size.amax(1)),
        loss=tally.loss.fmax(-log_p.amin(1)),
        confidence=tally.confidence.fmin(log_p.amin(1).exp()),
    )


def watched(tally: Tally, answer: Answer) -> Tally:
    """The running share of answers of a random model that fooled it."""
    fools = reached(answer.logits, tally.y, tally.goal).float()
    recent = _MEMORY * tally.recent + (1 - _MEMORY) * fools
    return replace(tally, recent=recent, waited=tally.waited + 1)


def is_due(tally: Tally, max_queries: int) -> Tensor:
    """Whether a random model was fooled so often of late that a claim is worth its many draws.

    Margins of random answers do not compare, so that a lucky one must not bar those after it; but
    whoever claims at every step wins some by luck. So each refusal doubles the wait for the next
    claim, until the last query.
    """
    wait = _FIRST_WAIT * 2.0 ** (tally.rejected - 1)
    is_time = (tally.rejected == 0) | (tally.waited >= wait) | (tally.queries >= max_queries)
    return is_time & (tally.recent > 0.5)


def refuse(tally: Tally, rows: Tensor, margins: Tensor) -> None:
    """Note that claims of ``rows``, with these margins ``(n,)``, were not accepted."""
    tally.rejected[rows] += 1
    tally.refused_margin[rows] = margins[rows]
    tally.waited[rows] = 0


def has_spent(tally: Tally, paid: tuple[int, int]) -> Tensor:
    """Whether one more query would go over the job's budget."""
    forward = tally.forward + paid[0]
    passes = forward + tally.backward + paid[1]
    return (passes > tally.max_passes) | (forward > tally.max_forward)


def kept(tally: Tally, points: Tensor, score: Tensor) -> Tally:
    """The best allowed point so far: that of the largest ``score`` ``(n,)``."""
    is_better = score > tally.best_score
    if score.device.type == "cpu" and not bool(is_better.any()):  # asking costs more elsewhere
        return tally
    is_better &= tally.allowed.contains(points)  # whatever an attack says of itself
    return replace(
        tally,
        best=torch.where(like(is_better, points), points, tally.best),
        best_score=torch.where(is_better, score, tally.best_score),
    )


def nearness(tally: Tally, points: Tensor, logits: Tensor, counts: Tensor | None) -> Tensor:
    """A score ``(n,)`` for minimal attacks: the nearer an allowed point that fools, the higher."""
    fools = reached(logits, tally.y, tally.goal)
    if counts is not None:
        fools = fools & counts
    return torch.where(fools, -tally.allowed.distance(points).float(), -torch.inf)
