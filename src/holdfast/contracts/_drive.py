"""The plainest loop that runs an attack: what the engine must equal, with every point kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast import rows
from holdfast.attacks._losses import margin
from holdfast.attacks.base import Answer, Attack, Problem, Query
from holdfast.contracts._violation import require
from holdfast.engine.random import Rng
from holdfast.threat import Domain, Threat

Classifier = Callable[[Tensor], Tensor]
Handler = Callable[[Any, int], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One round of questions: the jobs that asked ``(m,)``, their points and the margins there."""

    jobs: Tensor
    points: Tensor
    margins: Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """All that an attack asked, step by step."""

    problem: Problem
    steps: tuple[Step, ...]

    @property
    def jobs(self) -> Tensor:
        """The job of every asked point ``(q,)``."""
        return torch.cat([step.jobs for step in self.steps])

    @property
    def points(self) -> Tensor:
        """Every asked point ``(q, *shape)``."""
        return torch.cat([step.points for step in self.steps])

    @property
    def margins(self) -> Tensor:
        """The margin at every asked point ``(q,)``; positive: fooled."""
        return torch.cat([step.margins for step in self.steps])

    def path(self, job: int) -> Tensor:
        """The points that one job asked, in order ``(q_job, *shape)``."""
        return self.points[self.jobs == job]

    def n_queries(self) -> Tensor:
        """Points asked per job ``(n,)``."""
        return torch.bincount(self.jobs, minlength=len(self.problem.y))

    def best_margins(self, is_allowed: Tensor) -> Tensor:
        """The largest margin of each job ``(n,)`` over the points marked in ``is_allowed`` (q,)."""
        margins = self.margins.double().masked_fill(~is_allowed, -torch.inf)
        start = margins.new_full((len(self.problem.y),), -torch.inf)
        return start.scatter_reduce(0, self.jobs, margins, "amax")


def pose(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    ball: Threat,
    *,
    target: Tensor | None = None,
    seed: int = 0,
    domain: Domain | None = None,
) -> Problem:
    """The problem of attacking ``model`` at ``x`` ``(n, *shape)``, one stream of numbers a row."""
    with torch.no_grad():
        logits = model(x)
    allowed = ball.bind(x, domain or Domain())
    aim = torch.full_like(y, -1) if target is None else target
    return Problem(x, y, aim, allowed, Rng.from_seed(seed, len(x)), logits)


def reply(model: Classifier, query: Query) -> Answer:
    """What the model says to a query; gradients to the points alone, zero where not finite."""
    if query.objective is None:
        with torch.no_grad():
            logits = model(query.points)
        return Answer(logits, logits.new_empty(0), logits.new_empty(0))
    points = query.points.detach().requires_grad_()
    logits = model(points)
    losses = query.objective.function(logits, *query.objective.rows)
    columns = losses.reshape(len(losses), -1).sum(0)
    found = [_slope(column, points) for column in columns]
    gradients = found[0] if losses.ndim == 1 else torch.stack(found, 1)
    return Answer(logits.detach(), losses.detach(), gradients.nan_to_num(0.0, 0.0, 0.0))


def _slope(total: Tensor, points: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, points, allow_unused=True, retain_graph=True)
    return torch.zeros_like(points) if found is None else found


def drive(
    attack: Attack,
    model: Classifier,
    problem: Problem,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    handle: Handler | None = None,
) -> Trace:
    """Run every job to its own end, and keep all that was asked.

    Args:
        attack: The attack.
        model: Inputs ``(m, *shape)`` to logits ``(m, k)``.
        problem: The jobs.
        groups: Jobs that enter together; one group more enters at every step, beside those under
            way, as in refilled slots. All jobs enter at once where it is None.
        handle: What to do with the state after each step, e.g. write it down and read it again.

    Raises:
        ContractViolation: where a job asks more than ``attack.max_queries`` points.
    """
    waiting = [list(group) for group in (groups or [range(len(problem.y))])]
    jobs, state, steps = torch.empty(0, dtype=torch.int64), None, []
    asked = torch.zeros(len(problem.y), dtype=torch.int64)
    while waiting or len(jobs):
        if waiting:
            entering = torch.tensor(waiting.pop(0), dtype=torch.int64)
            fresh = attack.init(problem if groups is None else rows.take(problem, entering))
            state = fresh if state is None else rows.join([state, fresh])
            jobs = torch.cat([jobs, entering])
        state, jobs = _running(state, jobs)
        if len(jobs) == 0:
            continue
        asked[jobs] += 1
        _within_budget(attack, asked)
        state, jobs = _by_phase(attack, state, jobs)
        parts = [_advance(attack, model, part) for part in _apart(attack, state)]
        points, logits = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        steps.append(_step(problem, jobs, points, logits))
        state = rows.join([part[2] for part in parts])
        state = handle(state, len(steps)) if handle else state
    return Trace(problem, tuple(steps) or (_nothing(problem),))


def _by_phase(attack: Attack, state: Any, jobs: Tensor) -> tuple[Any, Tensor]:
    """The rows ordered by the kind of their question, where there are several."""
    phase = attack.phase(state)
    if phase is None or len(phase.unique()) == 1:
        return state, jobs
    order = phase.argsort(stable=True)
    return rows.take(state, order), jobs[order]


def _apart(attack: Attack, state: Any) -> list[Any]:
    """The state cut where the kind of question changes; rows are ordered by it."""
    phase = attack.phase(state)
    if phase is None or len(phase.unique()) == 1:
        return [state]
    return [rows.take(state, phase == kind) for kind in phase.unique()]


def _advance(attack: Attack, model: Classifier, state: Any) -> tuple[Tensor, Tensor, Any]:
    """One question of rows of one kind: the points, the logits, the state after it."""
    query = attack.ask(state)
    answer = reply(model, query)
    return query.points, answer.logits, attack.tell(state, answer)


def _running(state: Any, jobs: Tensor) -> tuple[Any, Tensor]:
    is_running = ~state.finished
    if bool(is_running.all()):
        return state, jobs
    return rows.take(state, is_running), jobs[is_running]


def _step(problem: Problem, jobs: Tensor, points: Tensor, logits: Tensor) -> Step:
    margins = margin(logits, problem.y[jobs], problem.target[jobs])
    return Step(jobs, points.detach().clone(), margins)


def _nothing(problem: Problem) -> Step:
    none = problem.y[:0]
    return Step(none, problem.x[:0], problem.logits[:0, 0])


def _within_budget(attack: Attack, asked: Tensor) -> None:
    most = int(asked.max())
    require(
        most <= attack.max_queries,
        f"A job asks for point {most}, but max_queries is {attack.max_queries}: it must be "
        "finished by then.",
    )


def with_seed(problem: Problem, seed: int) -> Problem:
    """The same jobs with the random numbers of another seed."""
    return replace(problem, rng=Rng.from_seed(seed, len(problem.y)))
