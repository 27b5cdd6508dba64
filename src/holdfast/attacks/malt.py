"""Gradient runs at the classes whose linearised boundary is nearest, as many as it takes.

Mesoscopic almost linearity targeting (Melamed, Yehudai and Shamir, 2024, arXiv:2407.02240): within
the sizes that matter a network is nearly linear, so the class gradients at x tell which wrong class
is the shortest way off, ``(z_y - z_c) / gain_c`` with the largest gain of ``z_c - z_y`` that the
allowed changes have in the linear model.

Differences from the authors' code: the class gradients come from one forward pass (theirs: K);
the gain is taken over the set itself, box and norm (theirs: a dual norm); the runs are plain
steps on the pairwise margin with a cosine schedule, the first from the best point of the linear
model, the others from random ones, every second without a target. Where an earlier attack hands a
point over, the first run goes on from there, and classes are ranked only for what survives it. A
sample gets another run only while little of its clean margin is left: the closer to falling, the
more runs. So hopeless samples cost little (the idea of Liu et al., 2022, arXiv:2203.05154, without
its constants).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin, margin
from holdfast.attacks._options import require_at_least
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.engine.random import Rng
from holdfast.rows import like
from holdfast.threat import Access, AllowedSet

RANK, CLIMB, LOOK = 0, 1, 2  # phases: the class gradients at x; a step; the end of a run


@dataclass(frozen=True, slots=True)
class MALTState:
    """One row per job.

    Attributes:
        classes: Candidate classes ``(n, m)``, nearest first once they are ranked.
        n_near: How many of them are worth a run ``(n,)``; 0 until they are ranked.
        clean: The goal's margin at x, negative.
        best: The largest one met.
        run, step: Which run this is, and which step of it.
    """

    x: Tensor
    y: Tensor
    goal: Tensor
    aim: Tensor
    allowed: AllowedSet
    rng: Rng
    classes: Tensor
    n_near: Tensor
    clean: Tensor
    best: Tensor
    run: Tensor
    step: Tensor
    kind: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class MALT(Attack):
    """Targeted runs at the linearly nearest classes, most of them where the margin is nearly gone.

    Attributes:
        steps: Gradient steps per run.
        runs: Runs per job at most.
        effort: Run ``j > 0`` is made where ``j`` times the share of the clean margin that is left
            is below this: at 1, a sample with a tenth left gets ten runs.
        candidates: Wrong classes whose gradients are looked at, likeliest first.
        reach: A class is worth a run up to this many times the distance of the nearest.
        first_step: Length of the first step in radii; later ones follow a cosine down to 0.
    """

    card: ClassVar[Card] = Card(
        name="malt",
        title="gradient runs at the classes that are nearest by the gradients, as many as it takes",
        paper="Melamed, Yehudai and Shamir (2024), MALT Powers Up Adversarial Attacks, "
        "arXiv:2407.02240",
        access=Access.GRADIENTS,
        norms=frozenset({"linf", "l2"}),
        takes_start=True,
    )

    steps: int = 20
    runs: int = 20
    effort: float = 1.0
    candidates: int = 20
    reach: float = 2.0
    first_step: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require_at_least(
            "malt", steps=(self.steps, 1), runs=(self.runs, 1), effort=(self.effort, 0)
        )
        require_at_least("malt", candidates=(self.candidates, 1), reach=(self.reach, 1))

    @property
    def max_queries(self) -> int:
        """The class gradients, then per run its points."""
        return 1 + self.runs * (self.steps + 1)

    def init(self, problem: Problem) -> MALTState:
        """Every row at its clean input or its start; a target given leaves nothing to rank."""
        y, goal = problem.y, problem.target if problem.goal is None else problem.goal
        others = problem.logits.scatter(1, y[:, None], -torch.inf)
        m = min(self.candidates, problem.logits.shape[1] - 1)
        is_given = problem.target >= 0
        classes = others.topk(m, dim=1).indices
        classes = torch.where(is_given[:, None], problem.target[:, None], classes)
        clean = goal_margin(problem.logits.float(), y, goal)
        zero = torch.zeros_like(y)
        noise = problem.allowed.sample(problem.rng.fold(0))
        x, is_ranked = torch.where(like(is_given, noise), noise, problem.x), is_given
        if problem.start is not None:
            x, is_given = problem.start, torch.ones_like(is_given)
        return MALTState(
            x=x,
            y=y,
            goal=goal,
            aim=problem.target,
            allowed=problem.allowed,
            rng=problem.rng,
            classes=classes,
            n_near=is_ranked.long(),
            clean=clean,
            best=clean.clone(),
            run=zero,
            step=zero.clone(),
            kind=torch.where(is_given, CLIMB, RANK),
            finished=zero > 0,
        )

    def phase(self, state: MALTState) -> Tensor:
        """Class gradients, one gradient, or none."""
        return state.kind

    def ask(self, state: MALTState) -> Query:
        """The points, and the gradients that this phase needs."""
        kind = int(state.kind[0]) if len(state.kind) else CLIMB
        if kind == RANK:
            width = state.classes.shape[1]
            return Query(state.x, Objective(class_gaps, (state.y, state.classes), width))
        if kind == CLIMB:
            return Query(state.x, Objective(margin, (state.y, state.aim)))
        return Query(state.x)

    def tell(self, state: MALTState, answer: Answer) -> MALTState:
        """Rank the classes, take a step, or begin the next run."""
        size = goal_margin(answer.logits.float(), state.y, state.goal)
        state = replace(state, best=state.best.fmax(size))
        kind = int(state.kind[0]) if len(state.kind) else CLIMB
        if kind == RANK:
            return self._ranked(state, answer)
        return self._stepped(state, answer) if kind == CLIMB else self._next_run(state)

    def _ranked(self, state: MALTState, answer: Answer) -> MALTState:
        """Nearest first; the first run starts at the best point of the linear model."""
        distance, ends = linear_distances(state.allowed, answer)
        order = distance.argsort(dim=1, stable=True)
        nearest = distance.gather(1, order)
        near = nearest <= self.reach * nearest[:, :1].clamp_min(0)
        first = order[:, 0]
        classes = state.classes.gather(1, order)
        x = torch.stack(ends, 1)[torch.arange(len(first), device=first.device), first]
        return replace(
            state,
            x=x,
            classes=classes,
            n_near=near.sum(1).clamp_min(1),
            aim=classes[:, 0],
            kind=torch.full_like(state.kind, CLIMB),
        )

    def _stepped(self, state: MALTState, answer: Answer) -> MALTState:
        turn = (1 + torch.cos(math.pi * state.step / self.steps)) / 2
        length = self.first_step * state.allowed.radius * turn.to(state.x.dtype)
        direction = state.allowed.direction(answer.gradients, state.x)
        x = state.allowed.project(state.x + like(length, direction) * direction)
        step = state.step + 1
        kind = torch.where(step >= self.steps, LOOK, CLIMB)
        return replace(state, x=x, step=step, kind=kind)

    def _next_run(self, state: MALTState) -> MALTState:
        """From a random point at the next class, or at none; where that is worth it."""
        run = state.run + 1
        left = share_left(state.best, state.clean)
        finished = (run >= self.runs) | (run * left >= self.effort)
        is_ranked = state.n_near > 0
        turn = torch.div(run, 2, rounding_mode="floor") % state.n_near.clamp_min(1)
        aim = state.classes.gather(1, turn[:, None]).squeeze(1)
        is_free = (run % 2 == 1) & (state.goal < 0)
        noise = state.allowed.sample(state.rng.fold(run))
        return replace(
            state,
            x=torch.where(like(is_ranked, noise), noise, state.allowed.x),
            aim=torch.where(is_free, -1, aim),
            run=run,
            step=torch.zeros_like(run),
            kind=torch.where(is_ranked, CLIMB, RANK),
            finished=finished,
        )


def share_left(best: Tensor, clean: Tensor) -> Tensor:
    """How much of the clean margin is left ``(n,)``: 1 at the start, 0 at the boundary.

    Both are negative while the answer is right; the share has no unit, so it means the same for
    every network and sample.
    """
    return (best / clean.clamp_max(-torch.finfo(clean.dtype).tiny)).clamp(0.0, 1.0)


def class_gaps(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """``z_c - z_y`` of some classes ``(n, m)``."""
    return logits.gather(1, classes) - logits.gather(1, y[:, None])


def linear_distances(allowed: AllowedSet, answer: Answer) -> tuple[Tensor, list[Tensor]]:
    """Of each class: the gap over the largest gain in the linear model ``(n, m)``, and its point.

    Below one, the linear model says that the class can be reached.
    """
    distances, ends = [], []
    for gap, gradient in zip(answer.losses.unbind(1), answer.gradients.unbind(1), strict=True):
        end = allowed.maximise_linear(gradient)
        gain = ((end - allowed.x) * gradient).flatten(1).sum(1).float()
        distances.append(
            (-gap.float()).clamp_min(0.0) / gain.clamp_min(torch.finfo(gain.dtype).tiny)
        )
        ends.append(end)
    return torch.stack(distances, 1), ends
