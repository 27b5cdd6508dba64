"""Slots: one full batch of attack jobs, each at its own step, refilled as jobs end.

Every attack at work has a lane: a state with one row per job. A tick asks all lanes for points,
runs the model once, tells the answers, lets the judge look at claims, and gives back the jobs that
ended. Nothing waits for the slowest sample, and no row's result depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from holdfast._running import loss_of
from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Attack, Problem, Query, Route
from holdfast.engine.jobs import Ended, Job
from holdfast.engine.judge import judge, reached
from holdfast.engine.lookahead import Preview, is_able, room
from holdfast.engine.tally import (
    Tally,
    counted,
    fresh,
    has_spent,
    is_due,
    kept,
    nearness,
    refuse,
    watched,
)
from holdfast.model import Model
from holdfast.record import Outcome
from holdfast.rows import join, take


@dataclass(slots=True)
class _Lane:
    attack: Attack
    state: Any
    tally: Tally
    jobs: list[Job] = field(default_factory=list)
    route: Route | None = None

    def ask(self) -> Query:
        """What its attack wants to know, by the lane's route."""
        query = self.attack.ask(self.state)
        return query if self.route is None else replace(query, route=self.route)

    def settle(self, view: Preview, answer: Answer, model: Model) -> tuple[Query, Answer]:
        """Go to where every job has to be told something; what it asked there, and the answer.

        The passes of questions that no job comes to are no more counted than those of padding.
        """
        passed = view.passed(self.attack, answer)
        model.passes.forward -= len(answer.logits) - len(passed) - int(passed.sum())
        self.tally = view.counted(self.tally, passed, answer)
        self.state, query, answer = view.at(passed, answer)
        return query, answer

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
        self._over: list[Ended] = []  # before their first tick

    @property
    def free(self) -> int:
        """Slots without a job."""
        return self.size - sum(len(lane.jobs) for lane in self._lanes.values())

    @property
    def is_empty(self) -> bool:
        """Whether no job is in flight."""
        return not self._lanes and not self._over

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
        tally = fresh(jobs, problem, goal, self.rules.keep_best)
        lane = _Lane(attack, attack.init(problem), tally, list(jobs), route)
        if problem.opening is not None:
            lane = self._opened(lane, jobs[0].stage, problem, problem.opening)
        self._file(jobs[0].stage, lane)

    def _opened(self, lane: _Lane, stage: int, problem: Problem, gradients: Tensor) -> _Lane:
        """Rows whose first gradient is known are told so; the lane of those that have to ask."""
        is_known = gradients.flatten(1).any(1)
        rows = is_known.nonzero().squeeze(1)
        if len(rows) > 0:
            known = lane.part(rows)
            query, logits = known.ask(), problem.logits[rows]
            answer = Answer(logits, loss_of(query.objective, logits), gradients[rows])
            self._over += self._advance(known, query, answer, (0, query.n_backward))
            self._file(stage, known)
        return lane.part((~is_known).nonzero().squeeze(1))

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

    def tick(self) -> list[Ended]:
        """One pass of the model for every job in flight; the jobs that are over after it."""
        lanes = list(self._lanes.items())
        views = self._previews([lane for _, lane in lanes])
        queries = [
            lane.ask() if view is None else view.query
            for (_, lane), view in zip(lanes, views, strict=True)
        ]
        answers = self.model.search(queries)
        ended, self._over = self._over, []
        for (_, lane), view, query, answer in zip(lanes, views, queries, answers, strict=True):
            if view is not None:
                query, answer = lane.settle(view, answer, self.model)
            ended += self._advance(lane, query, answer, query.passes(self.model.draws))
        self._regroup(lanes)
        return ended

    def _previews(self, lanes: Sequence[_Lane]) -> list[Preview | None]:
        """Of the lanes that can look ahead, where a call of all lanes has rows to spare."""
        sizes = [len(lane.jobs) for lane in lanes]
        able = [lane.attack.looks_ahead for lane in lanes]
        n = room(self.model, sum(sizes), sum(compress(sizes, able)))
        return [
            Preview.of(lane.attack, lane.state, n)
            if n > 1 and is_one and is_able(lane.jobs, lane.tally)
            else None
            for lane, is_one in zip(lanes, able, strict=True)
        ]

    def _regroup(self, lanes: Sequence[tuple[tuple[int, int], _Lane]]) -> None:
        """Rows that came into another phase join the lane of that phase; empty lanes go."""
        is_moved = [_phases(lane) != [(phase, None)] for (_, phase), lane in lanes]
        for (key, _), moved in zip(lanes, is_moved, strict=True):
            if moved:
                del self._lanes[key]
        for ((stage, _), lane), moved in zip(lanes, is_moved, strict=True):
            if moved and lane.jobs:
                self._file(stage, lane)

    def _advance(
        self, lane: _Lane, query: Query, answer: Answer, paid: tuple[int, int]
    ) -> list[Ended]:
        """Tell the lane an answer that cost ``paid`` passes per row; the jobs that are over."""
        counts = None
        if not lane.attack.stays_inside:
            counts = lane.tally.allowed.contains(query.points)
        lane.tally, answer, score = counted(lane.tally, answer, paid, counts)
        if self.rules.keep_best:
            if self._is_minimal(lane):
                score = nearness(lane.tally, query.points, answer.logits, counts)
            lane.tally = kept(lane.tally, query.points, score)
        if self.model.is_random:
            lane.tally = watched(lane.tally, answer)
        claims = self._claims(lane, answer)
        lane.state = lane.attack.tell(lane.state, answer)
        over = lane.state.finished | (lane.tally.queries >= lane.attack.max_queries)
        paid = query.passes(self.model.draws)  # at least, for the next one
        spent = has_spent(lane.tally, paid)
        if not bool((claims | over | spent).any()):  # all that a step asks of the device
            return []
        accepted, verdict = self._judged(lane.tally, claims, query, answer)
        stopped = has_spent(lane.tally, paid) & ~over & ~accepted
        ends = over | stopped | accepted
        rows = ends.nonzero().squeeze(1)
        if len(rows) == 0:
            return []
        result = self._ended(lane, rows, accepted, stopped, verdict)
        self._remove(lane, rows)
        return result

    def _is_minimal(self, lane: _Lane) -> bool:
        return lane.attack.card.is_minimal and not self.rules.stop_when_fooled

    def _claims(self, lane: _Lane, answer: Answer) -> Tensor:
        """Which rows fool the model by this answer; a refused one only with a larger margin.

        Where the search rounds coarsely, so do those that are within its rounding of it. A random
        model's are those that :func:`is_due` lets through.
        """
        tally = lane.tally
        if not self.rules.stop_when_fooled:
            return torch.zeros_like(tally.y, dtype=torch.bool)
        size = goal_margin(answer.logits, tally.y, tally.goal)
        fools = reached(answer.logits, tally.y, tally.goal)
        if unit := self.model.tuning.rounding:
            fools = fools | (size > -unit * answer.logits.abs().amax(1))
        if self.model.is_random:
            return fools & is_due(tally, lane.attack.max_queries)
        return fools & (size > tally.refused_margin)

    def _judged(
        self, tally: Tally, claims: Tensor, query: Query, answer: Answer
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
        is_plain = query.route is None and self.model.tuning.is_exact
        known = answer.logits[rows] if is_plain else None
        found = judge(self.model, query.points[rows], allowed, y, goal, self.rules.quantise, known)
        tally.forward[rows] += found.forward
        refuse(tally, rows[~found.accepted], goal_margin(answer.logits, tally.y, tally.goal))
        accepted[rows] = found.accepted
        pairs = zip(rows.tolist(), found.points, found.logits, strict=True)
        return accepted, {row: (point, logits) for row, point, logits in pairs}

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
        tally: Tally,
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
