"""The attacks of one threat: which job every sample has next, and the slots that run them.

Every sample walks through the cascade on its own, one job at a time, and leaves it when it falls.
Waiting samples stand in one queue: earlier jobs first, and among equals those closest to falling.
A stage that is for some samples only (see :class:`~holdfast.engine.cascade.Terms`) is noted as
spared for the others.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.base import Problem
from holdfast.engine.cascade import Step, has_found, parts, rank_wrong, walk
from holdfast.engine.found import submit
from holdfast.engine.handover import Handover
from holdfast.engine.jobs import NO_LIMIT, Ended, Job
from holdfast.engine.ledger import REUSED, Standing
from holdfast.engine.random import Rng
from holdfast.engine.slots import Rules, Slots
from holdfast.events import Event, PhaseDone
from holdfast.record import Attempt, Spared
from holdfast.threat import Threat

_DRAW = 0x5A
"""What a sample's draw for stages with a ``share`` hangs on, beside seed, threat and sample."""

if TYPE_CHECKING:
    from holdfast.engine.run import Context
    from holdfast.engine.workers.crew import Crew


class Attacking:
    """One threat's attacks, under way."""

    def __init__(
        self, context: Context, threat: Threat, steps: Sequence[Step], announced: int = 0
    ) -> None:
        """``announced`` first steps are over and have been reported."""
        self.context, self.threat, self.steps = context, threat, steps
        self.text = threat.describe()
        self.standing: Standing = context.ledger.standing(self.text)
        self.n_unfinished = 0
        self.handover = Handover(context, threat)
        self._counts = [self._n_jobs(step) for step in steps]
        self._queue: list[tuple[int, int, float, int]] = []
        self._active = [0] * len(steps)
        self._announced = announced
        self._end = 0
        self._is_on = [True] * len(steps)
        keys = Rng(context.seen.keys).fold(context.plan.seed).fold(_number(self.text)).fold(_DRAW)
        self._draws = keys.uniform((len(steps),), torch.float64).numpy()

    # ------------------------------------------------------------------ walks

    def _n_jobs(self, step: Step) -> int:
        """How many jobs a sample has in this step; the same for all."""
        others = list(range(self.context.model.n_classes - 1))
        goal = 0 if self.context.plan.goal.is_targeted else -1
        return len(walk(step, others, goal))

    def _place(self, sample: int) -> tuple[int, int] | None:
        """Where a sample stands: (step, job within it); None at the end."""
        at = int(self.standing.position[sample])
        for i, count in enumerate(self._counts):
            if at < count:
                return i, at
            at -= count
        return None

    def _wait(self, sample: int) -> None:
        """Put a sample in the queue, unless its walk is over or waits for the others."""
        while not self._is_done(sample):
            place = self._place(sample)
            if place is None or place[0] >= self._end:
                return
            step, job = place
            if self._wants(sample, step, job):
                heapq.heappush(self._queue, (step, job, -self._margin(sample), sample))
                self._active[step] += 1
                return
            jobs, stage = self._counts[step] - job, self.steps[step].stage
            spared = Spared(threat=self.text, sample=sample, stage=stage, jobs=jobs)
            self.context.append([spared])

    def _wants(self, sample: int, step: int, job: int) -> bool:
        """Whether a sample is one of those that a stage is for."""
        left, draw = self._left(sample, self._margin(sample)), float(self._draws[sample, step])
        return self._is_on[step] and self.steps[step].terms.wants(left, job, draw)

    def _left(self, sample: int, margin: float) -> float:
        """The share of the clean margin that this one leaves."""
        clean = float(self.context.ledger.margin[sample])
        is_targeted = self.context.plan.goal.is_targeted  # margins then mean another class
        return 0.0 if is_targeted or clean >= 0 else margin / clean

    def _margin(self, sample: int) -> float:
        """The largest margin met, the clean input's among them."""
        return max(float(self.standing.margin[sample]), float(self.context.ledger.margin[sample]))

    def _is_done(self, sample: int) -> bool:
        standing = self.standing
        is_decided = standing.is_broken[sample] or standing.is_verified[sample]
        return bool(is_decided or standing.is_stopped[sample])

    # ------------------------------------------------------------------ running

    def run(self) -> Iterator[Event]:
        """All jobs, until every walk is over or the time is."""
        self._reuse()
        quantise = self.context.plan.quantise is not None
        rules = Rules(quantise=quantise, keep_best=self.handover.is_needed)
        slots = self.context.slots_for(rules)
        for end in parts(self.steps):
            self._go_on_to(end)
            yield from self._part(slots)
            if self.n_unfinished:
                return
        yield from self._say(is_end=True)

    def _go_on_to(self, end: int) -> None:
        """The steps before ``end`` may run; which of them do is decided by those before them."""
        self._end = end
        for i, step in enumerate(self.steps[:end]):
            if step.terms.when:
                self._is_on[i] = has_found(self.steps[:i], self.standing.broken_by)
        for sample in self._attacked():
            self._wait(sample)

    def _attacked(self) -> list[int]:
        """Samples that there is something to attack in."""
        ledger = self.context.ledger
        wants_more = ledger.goal != self.context.seen.y.numpy()  # else the goal is the label itself
        return np.flatnonzero(ledger.is_correct & wants_more).tolist()

    def _n_waiting(self) -> int:
        """Samples whose walk is not over."""
        open_ = [i for i in self._attacked() if not self._is_done(i)]
        return sum(self._place(i) is not None for i in open_)

    def _part(self, slots: Slots | Crew) -> Iterator[Event]:
        """All jobs before the next pause."""
        while self._queue or not slots.is_empty:
            if self.context.is_over_time:
                self.n_unfinished = self._n_waiting()
                return
            self._refill(slots)
            ended = slots.tick()
            self._record(ended)
            yield from self.context.notices()
            yield from self._say()

    def _refill(self, slots: Slots | Crew) -> None:
        free = slots.free
        taken: list[tuple[int, int, int]] = []
        while self._queue and len(taken) < free:
            step, job, _, sample = heapq.heappop(self._queue)
            taken.append((step, job, sample))
        for step in sorted({s for s, _, _ in taken}):
            group = [(job, sample) for s, job, sample in taken if s == step]
            for some, start in self._beginnings(self.steps[step], group):
                self._start(slots, step, some, start)

    def _beginnings(
        self, step: Step, group: list[tuple[int, int]]
    ) -> list[tuple[list[tuple[int, int]], Tensor | None]]:
        """The jobs that begin at a point met before, with the points; and the others."""
        if not step.starts_at_best:
            return [(group, None)]
        points = self.handover.read([(i, self._margin(i)) for _, i in group])
        both = list(zip(group, points, strict=True))
        known = [one for one, point in both if point is not None]
        other = [one for one, point in both if point is None]
        start = torch.stack([point for _, point in both if point is not None]) if known else None
        return [some for some in ((other, None), (known, start)) if some[0]]

    def _start(
        self,
        slots: Slots | Crew,
        number: int,
        group: list[tuple[int, int]],
        start: Tensor | None,
    ) -> None:
        """Start one job for each (job, sample) of ``group``, all of one step."""
        context, step = self.context, self.steps[number]
        samples = [sample for _, sample in group]
        x, y = context.fetch(samples)
        logits = context.logits_file().read(samples).to(x.device)
        goal = torch.from_numpy(context.ledger.goal[samples]).to(x.device)
        ranked = rank_wrong(logits, y, step.attack.option("n_targets", 0)).tolist()
        pairs = [
            walk(step, row, g)[job]
            for (job, _), row, g in zip(group, ranked, goal.tolist(), strict=True)
        ]
        target = torch.tensor([t for t, _ in pairs], device=x.device)
        restart = torch.tensor([r for _, r in pairs], device=x.device)
        allowed = context.bind(self.threat, x, samples)
        rng = self._rng(samples, x.device, number).fold(target).fold(restart)
        jobs = [
            Job(sample, number, t, r, *self._limits(sample))
            for sample, (t, r) in zip(samples, pairs, strict=True)
        ]
        first = context.opening and context.opening.read(context, self.text, step, samples)
        problem = Problem(x, y, target, allowed, rng, logits, start=start, opening=first)
        slots.add(step.attack, jobs, problem, goal, step.route)

    def _rng(self, samples: list[int], device: torch.device, number: int) -> Rng:
        """By seed, sample, threat and stage; not by the sample's place in the data."""
        keys = self.context.seen.keys[samples].to(device)
        return Rng(keys).fold(self.context.plan.seed).fold(_number(self.text)).fold(number)

    def _limits(self, sample: int) -> tuple[int, int]:
        """What is left of the sample's budget."""
        budget, standing = self.context.plan.budget, self.standing
        forward, backward = int(standing.forward[sample]), int(standing.backward[sample])
        passes = NO_LIMIT if budget.passes is None else budget.passes - forward - backward
        queries = NO_LIMIT if budget.queries is None else budget.queries - forward
        return passes, queries

    # ------------------------------------------------------------------ recording

    def _record(self, ended: list[Ended]) -> None:
        """Adversarial inputs to their file, then attempts to the journal, then the next jobs."""
        broken = [one for one in ended if one.x_adv is not None]
        if broken:
            rows = [one.job.sample for one in broken]
            points = torch.stack([one.x_adv for one in broken if one.x_adv is not None])
            self.context.adversarial_file(self.text).write(rows, points)
        self._hand_over(ended)
        self.context.append([self._attempt(one) for one in ended])
        for one in ended:
            self._active[one.job.stage] -= 1
            self._wait(one.job.sample)

    def _hand_over(self, ended: list[Ended]) -> None:
        """Points that came nearer than any before, to their file."""
        for one in ended:
            job, score = one.job, one.best_score
            if one.best is None or score <= self._margin(job.sample):
                continue
            if self.handover.wants(self.steps[job.stage].stage, self._left(job.sample, score)):
                self.handover.write(job.sample, score, one.best)

    def _attempt(self, ended: Ended) -> Attempt:
        job, step = ended.job, self.steps[ended.job.stage]
        return Attempt(
            threat=self.text,
            sample=job.sample,
            stage=step.stage,
            attack=step.label,
            target=job.target,
            restart=job.restart,
            outcome=ended.outcome,
            forward=ended.forward,
            backward=ended.backward,
            margin=max(ended.margin, float(self.context.ledger.margin[job.sample])),
            loss=max(ended.loss, 0.0),
            confidence=ended.confidence,
            prediction=ended.prediction,
            prediction_confidence=ended.prediction_confidence,
            distance=ended.distance,
            rejected=ended.rejected,
            zero_gradients=ended.zero_gradients,
        )

    def _reuse(self) -> None:
        """What broke a sample under another threat may be allowed under this one as well."""
        context = self.context
        for other, standing in list(context.ledger.standings.items()):
            is_new = standing.is_broken & context.ledger.is_correct & ~self.standing.is_broken
            if other == self.text or not is_new.any():
                continue
            rows = np.flatnonzero(is_new).tolist()
            for start in range(0, len(rows), context.slots):
                some = rows[start : start + context.slots]
                points = context.adversarial_file(other).read(some)
                submit(context, self.threat, some, points, REUSED, f"found under {other}")

    # ------------------------------------------------------------------ speaking

    def _say(self, is_end: bool = False) -> Iterator[Event]:
        context = self.context
        while self._announced < self._end and not sum(self._active[: self._announced + 1]):
            over = self.steps[: self._announced + 1]
            step = over[-1]
            passes = int(self.standing.forward.sum() + self.standing.backward.sum())
            yield PhaseDone(
                self.text,
                step.label,
                context.ledger.robust_accuracy(self.text, [s.stage for s in over]),
                context.ledger.clean_accuracy,
                passes / context.ledger.n,
                context.seconds,
            )
            self._announced += 1
        if self._announced < len(self.steps) and not is_end:
            step = self.steps[self._announced]
            waiting = sum(self._active[: self._announced + 1])
            total = int(context.ledger.is_correct.sum())
            yield from context.progress(self.text, step.label, total - waiting, total)


def _number(text: str) -> int:
    """A stable number for a threat's text."""
    return zlib.crc32(text.encode())
