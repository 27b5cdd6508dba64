"""Slots: one full batch of attack jobs, each at its own step, refilled as jobs end.

Every attack at work has a lane: a state with one row per job. A tick asks all lanes for points,
runs the model once, tells the answers, lets the judge look at claims, and gives back the jobs that
ended. Nothing waits for the slowest sample, and no row's result depends on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Attack, Problem, Query, Route
from holdfast.engine.judge import judge, reached
from holdfast.model import Model
from holdfast.record import Outcome
from holdfast.rows import join, like, take
from holdfast.threat import AllowedSet

NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Job:
    """One sample under one attack, aimed at one class, in one restart.

    Attributes:
        sample: Number of the sample.
        stage: Position of the attack in the cascade.
        target: Class aimed at, or -1.
        restart: 0 for the first.
        max_passes: Passes it may use at most, forward plus backward.
        max_forward: Forward passes it may use at most.
    """

    sample: int
    stage: int
    target: int = -1
    restart: int = 0
    max_passes: int = NO_LIMIT
    max_forward: int = NO_LIMIT


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over.

    Attributes:
        x_adv: The accepted adversarial input on the CPU; None where there is none.
        best: The allowed point of largest margin, if the slots keep it; on the device.
        distance: Size of the accepted change in the threat's units.
    """

    job: Job
    outcome: Outcome
    forward: int
    backward: int
    margin: float
    loss: float
    confidence: float
    rejected: int
    zero_gradients: int
    prediction: int = -1
    prediction_confidence: float = 0.0
    distance: float | None = None
    x_adv: Tensor | None = None
    best: Tensor | None = None
    best_score: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Tally:
    """What the engine itself keeps of each job."""

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


@dataclass(slots=True)
class _Lane:
    attack: Attack
    state: Any
    tally: _Tally
    jobs: list[Job] = field(default_factory=list)
    route: Route | None = None

    def ask(self) -> Query:
        """What its attack wants to know, by the lane's route."""
        query = self.attack.ask(self.state)
        return query if self.route is None else replace(query, route=self.route)

    def part(self, rows: Tensor) -> _Lane:
        """The lane of some of its rows."""
        jobs = [self.jobs[i] for i in rows.tolist()]
        return _Lane(self.attack, take(self.state, rows), take(self.tally, rows), jobs, self.route)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a job ends, and what is kept of it.

    Attributes:
        stop_when_fooled: End a job at its first accepted claim; else it uses its whole budget.
        quantise: Judge the nearest 8-bit input.
        keep_best: Keep the point of largest margin (or, for a minimal attack that goes on, the
            nearest fooling one).
    """

    stop_when_fooled: bool = True
    quantise: bool = False
    keep_best: bool = False


class Slots:
    """The jobs in flight, at most ``size`` of them."""

    def __init__(self, model: Model, size: int, rules: Rules) -> None:
        self.model = model
        self.size = size
        self.rules = rules
        self._lanes: dict[tuple[int, int], _Lane] = {}  # by stage and phase

    @property
    def free(self) -> int:
        """Slots without a job."""
        return self.size - sum(len(lane.jobs) for lane in self._lanes.values())

    @property
    def is_empty(self) -> bool:
        """Whether no job is in flight."""
        return not self._lanes

    def add(
        self,
        attack: Attack,
        jobs: Sequence[Job],
        problem: Problem,
        goal: Tensor,
        route: Route | None = None,
    ) -> None:
        """Start jobs of one stage; row i of ``problem`` and ``goal`` ``(n,)`` is ``jobs[i]``'s.

        Gradients come by ``route``, the same for all jobs of the stage.
        """
        problem = replace(problem, goal=goal)
        tally = self._tally(jobs, problem, goal)
        self._file(jobs[0].stage, _Lane(attack, attack.init(problem), tally, list(jobs), route))

    def _file(self, stage: int, lane: _Lane) -> None:
        """Put a lane's rows with those of the same stage and phase."""
        for phase, rows in _phases(lane):
            part = lane if rows is None else lane.part(rows)
            old = self._lanes.get((stage, phase))
            if old is not None:
                part.state = join([old.state, part.state])
                part.tally = join([old.tally, part.tally])
                part.jobs = old.jobs + part.jobs
            self._lanes[stage, phase] = part

    def _tally(self, jobs: Sequence[Job], problem: Problem, goal: Tensor) -> _Tally:
        y, x = problem.y, problem.x
        zero = torch.zeros_like(y)
        low = torch.full(y.shape, -torch.inf, device=y.device)
        return _Tally(
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
            best=x.clone() if self.rules.keep_best else x.new_empty(len(x), 0),
            best_score=low.clone(),
        )

    def tick(self) -> list[Ended]:
        """One pass of the model for every job in flight; the jobs that are over after it."""
        lanes = list(self._lanes.items())
        queries = [lane.ask() for _, lane in lanes]
        answers = self.model.answer(queries)
        ended: list[Ended] = []
        for (_, lane), query, answer in zip(lanes, queries, answers, strict=True):
            ended += self._advance(lane, query, answer)
        self._regroup(lanes)
        return ended

    def _regroup(self, lanes: Sequence[tuple[tuple[int, int], _Lane]]) -> None:
        """Rows that came into another phase join the lane of that phase; empty lanes go."""
        is_moved = [_phases(lane) != [(phase, None)] for (_, phase), lane in lanes]
        for (key, _), moved in zip(lanes, is_moved, strict=True):
            if moved:
                del self._lanes[key]
        for ((stage, _), lane), moved in zip(lanes, is_moved, strict=True):
            if moved and lane.jobs:
                self._file(stage, lane)

    def _advance(self, lane: _Lane, query: Query, answer: Answer) -> list[Ended]:
        paid = query.passes(self.model.draws)
        counts = None
        if not lane.attack.stays_inside:
            counts = lane.tally.allowed.contains(query.points)
        lane.tally, answer = _counted(lane.tally, answer, paid, counts)
        if self.rules.keep_best:
            lane.tally = _kept(lane.tally, query.points, answer.logits, self._is_minimal(lane))
        claims = self._claims(lane.tally, answer)
        lane.state = lane.attack.tell(lane.state, answer)
        over = lane.state.finished | (lane.tally.queries >= lane.attack.max_queries)
        spent = _has_spent(lane.tally, paid)
        if not bool((claims | over | spent).any()):  # all that a step asks of the device
            return []
        accepted, verdict = self._judged(lane.tally, claims, query, answer)
        stopped = _has_spent(lane.tally, paid) & ~over & ~accepted
        ends = over | stopped | accepted
        rows = ends.nonzero().squeeze(1)
        if len(rows) == 0:
            return []
        result = self._ended(lane, rows, accepted, stopped, verdict)
        self._remove(lane, rows)
        return result

    def _is_minimal(self, lane: _Lane) -> bool:
        return lane.attack.card.is_minimal and not self.rules.stop_when_fooled

    def _claims(self, tally: _Tally, answer: Answer) -> Tensor:
        """Which rows fool the model by this answer; a refused one only with a larger margin."""
        if not self.rules.stop_when_fooled:
            return torch.zeros_like(tally.y, dtype=torch.bool)
        size = goal_margin(answer.logits, tally.y, tally.goal)
        return reached(answer.logits, tally.y, tally.goal) & (size > tally.refused_margin)

    def _judged(
        self, tally: _Tally, claims: Tensor, query: Query, answer: Answer
    ) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
        """Which claims are accepted: a mask, and per row its point and logits."""
        accepted = torch.zeros_like(claims)
        rows = claims.nonzero().squeeze(1)
        if len(rows) and not self.rules.quantise:
            # minimal attacks come from outside the set: such points are no claims at all
            rows = rows[take(tally.allowed, rows).contains(query.points[rows])]
        if len(rows) == 0:
            return accepted, {}
        allowed = take(tally.allowed, rows)
        y, goal = tally.y[rows], tally.goal[rows]
        before = self.model.passes.forward
        found = judge(self.model, query.points[rows], allowed, y, goal, self.rules.quantise)
        paid = self.model.passes.forward - before
        self._charge(tally, rows, found.accepted, paid)
        refused = rows[~found.accepted]
        tally.rejected[refused] += 1
        size = goal_margin(answer.logits, tally.y, tally.goal)
        tally.refused_margin[refused] = size[refused]
        accepted[rows] = found.accepted
        pairs = zip(rows.tolist(), found.points, found.logits, strict=True)
        return accepted, {row: (point, logits) for row, point, logits in pairs}

    def _charge(self, tally: _Tally, rows: Tensor, accepted: Tensor, paid: int) -> None:
        """The judge's passes, on the rows they were spent on: two if accepted, else one at most."""
        if self.model.is_random:
            tally.forward[rows] += paid // max(1, len(rows))
        else:
            tally.forward[rows] += 1 + accepted.long()

    def _ended(
        self,
        lane: _Lane,
        rows: Tensor,
        accepted: Tensor,
        stopped: Tensor,
        verdict: dict[int, tuple[Tensor, Tensor]],
    ) -> list[Ended]:
        tally, ended = take(lane.tally, rows), []
        counts = torch.stack(
            [tally.forward, tally.backward, tally.rejected, tally.zero_gradients], 1
        ).tolist()
        values = torch.stack([tally.margin, tally.loss, tally.confidence], 1).tolist()
        flags = torch.stack([accepted[rows], stopped[rows]], 1).tolist()
        scores = tally.best_score.tolist()
        best = tally.best if self.rules.keep_best else None
        for i, row in enumerate(rows.tolist()):
            is_broken, is_stopped = flags[i]
            forward, backward, rejected, zero = counts[i]
            outcome = Outcome.STOPPED if is_stopped else Outcome.SURVIVED
            one = Ended(
                lane.jobs[row],
                Outcome.BROKEN if is_broken else outcome,
                forward=forward,
                backward=backward,
                margin=values[i][0],
                loss=values[i][1],
                confidence=values[i][2],
                rejected=rejected,
                zero_gradients=zero,
                best=best[i] if best is not None else None,
                best_score=scores[i],
            )
            ended.append(one)
        return self._with_artefacts(ended, rows, tally, verdict)

    def _with_artefacts(
        self,
        ended: list[Ended],
        rows: Tensor,
        tally: _Tally,
        verdict: dict[int, tuple[Tensor, Tensor]],
    ) -> list[Ended]:
        """Add the adversarial inputs and the answers to them, all broken rows at once."""
        broken = [i for i, one in enumerate(ended) if one.outcome is Outcome.BROKEN]
        if not broken:
            return ended
        found = [verdict[int(rows[i])] for i in broken]
        points = torch.stack([point for point, _ in found])
        chances = torch.stack([logits for _, logits in found]).softmax(1).cpu()
        allowed = take(tally.allowed, torch.tensor(broken, device=rows.device))
        distances = allowed.distance(points).tolist()
        points = points.cpu()
        for j, i in enumerate(broken):
            prediction = int(chances[j].argmax())
            ended[i] = replace(
                ended[i],
                prediction=prediction,
                prediction_confidence=float(chances[j, prediction]),
                distance=distances[j],
                x_adv=points[j],
            )
        return ended

    def _remove(self, lane: _Lane, rows: Tensor) -> None:
        keep = torch.ones(len(lane.jobs), dtype=torch.bool, device=rows.device)
        keep[rows] = False
        kept = keep.nonzero().squeeze(1)
        lane.jobs = [lane.jobs[i] for i in kept.tolist()]
        if lane.jobs:
            lane.state, lane.tally = take(lane.state, kept), take(lane.tally, kept)


def _phases(lane: _Lane) -> list[tuple[int, Tensor | None]]:
    """The phases of a lane's rows, each with its rows; None: all of them."""
    phase = lane.attack.phase(lane.state) if lane.jobs else None
    if phase is None:
        return [(0, None)] if lane.jobs else []
    kinds = phase.unique().tolist()
    if len(kinds) == 1:
        return [(kinds[0], None)]
    return [(kind, (phase == kind).nonzero().squeeze(1)) for kind in kinds]


def _counted(
    tally: _Tally, answer: Answer, paid: tuple[int, int], counts: Tensor | None
) -> tuple[_Tally, Answer]:
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


def _has_spent(tally: _Tally, paid: tuple[int, int]) -> Tensor:
    """Whether one more query would go over the job's budget."""
    forward = tally.forward + paid[0]
    passes = forward + tally.backward + paid[1]
    return (passes > tally.max_passes) | (forward > tally.max_forward)


def _kept(tally: _Tally, points: Tensor, logits: Tensor, is_minimal: bool) -> _Tally:
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
