"""The search behind :func:`holdfast.minimal_distances`: attacks one after the other, then polish.

For every sample it keeps the nearest input that was replayed and found to fool the model, who found
it, and the passes spent so far; nothing that an attack says of itself counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks._hyperplane import length
from holdfast.attacks.base import Attack, Problem
from holdfast.engine.cascade import Step, rank_wrong, walk
from holdfast.engine.jobs import Ended, Job
from holdfast.engine.judge import judge, reached
from holdfast.engine.random import Rng
from holdfast.engine.slots import Rules, Slots
from holdfast.evaluation._ranking import CANDIDATES, FORWARD, Ranking, rank, rivals
from holdfast.model import Model
from holdfast.perturbations.ball import Ball
from holdfast.rows import like, take
from holdfast.threat import AllowedSet

NOBODY, CLEAN = -1, -2
NEARER = 0.999  # of the distance known: what a later attack has to undercut
KEPT = 1.1  # of what gradients at x said: how far the class gone for may prove to be
SPARE = 1.4  # of the distance known: how far another class may seem that is gone for too
JUDGING = 2  # forward passes of one judgement: in a batch, and apart from it
CLOSE, FURTHER = 1 / 256, 8.0  # of the polish: its first step, in distances; growth of the next
LOOKING = 1  # forward pass that tells which class the nearest input known has reached


class Search:
    """Where every sample stands; tensors with one row per sample.

    Attributes:
        distance: Size of the nearest change known, float64; 0 where the clean answer is wrong
            already, infinite where nothing was found.
        x_adv: The changed inputs.
        found_by: Number of the attack, ``NOBODY`` or ``CLEAN``.
        forward: Forward passes spent.
        backward: Backward passes spent.
        ranking: Which classes gradients at x say are near, where an attack has asked.
        is_led: Samples whose gradients led as far as they said, and say that another class may be
            nearer than :data:`SPARE` times the distance known; in l2: than the class reached.
        spare: The class that those go for, else -1.
        is_sure: Samples whose gradients :meth:`look` believed, and that know of nothing nearer.
    """

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, goal: Tensor, norm: str, rng: Rng
    ) -> None:
        self.model, self.x, self.y, self.goal, self.rng = model, x, y, goal, rng
        self.norm = norm
        self.logits = model.logits(x)
        self.allowed = _everything(x, model, norm)
        is_wrong = reached(self.logits, y, goal)
        far = torch.full(y.shape, torch.inf, dtype=torch.float64, device=y.device)
        self.distance = torch.where(is_wrong, 0.0, far)
        self.x_adv = x.clone()
        self.found_by = torch.where(is_wrong, CLEAN, NOBODY)
        self.forward, self.backward = torch.zeros_like(y), torch.zeros_like(y)
        self.ranking: Ranking | None = None
        self.is_led = torch.zeros_like(is_wrong)
        self.is_sure = torch.zeros_like(is_wrong)
        self.spare = torch.full_like(y, -1)

    @property
    def open(self) -> Tensor:
        """Samples whose distance can still fall ``(m,)``."""
        return (self.distance > 0).nonzero().squeeze(1)

    def attack(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """Let one attack look for smaller changes than those known.

        Args:
            attack: The attack.
            number: What it is remembered by.
            max_passes: Passes per sample for all of its targets and restarts together.
            size: Jobs in flight.
        """
        step = Step(number, attack.card.name, attack)
        n_targets = attack.option("n_targets", 0)
        ranked = rank_wrong(self.logits, self.y, n_targets)
        n_ranked = min(CANDIDATES.get(self.norm, 0), self.logits.shape[1] - 1)
        if 0 < n_targets < n_ranked and bool((self.goal < 0).all()):
            self.ranking = rank(self, n_ranked, size)
            ranked = self.ranking.classes[:, :n_targets]
            max_passes -= FORWARD + n_ranked
        classes, goals = ranked.tolist(), self.goal.tolist()
        pairs = [(i, *job) for i in self.open.tolist() for job in walk(step, classes[i], goals[i])]
        self._run(step, pairs, max_passes, size, None)
        if self.ranking is not None and n_targets == 1:
            self.is_led = _led(self.distance, self.ranking)
            self.spare = self.ranking.spare

    def attack_spare(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """Let an attack go from x for the class that was the first one's rival.

        For samples that are led only; :meth:`approach` is for the others.
        """
        rows = self.is_led.nonzero().squeeze(1).tolist()
        pairs = [(i, int(self.spare[i]), 0) for i in rows]
        self._run(Step(number, attack.card.name, attack), pairs, max_passes, size, None)

    def look(self, n_tried: int, size: int) -> None:
        """Ask gradients at x whether they led where they said, and what they say is nearer.

        ``n_tried`` likeliest wrong classes have been gone for. Costs :data:`CHECKING` passes, and
        :data:`ASKING` more where they are believed.
        """
        if bool((self.goal < 0).all()):
            found = rivals(self, n_tried, size)
            self.is_led, self.spare = found.nearer >= 0, found.nearer
            self.is_sure = found.is_honest & ~self.is_led

    def refine(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """Let an attack go on from the nearest input known, towards the class that it reached.

        The attack must honour :attr:`~holdfast.attacks.base.Problem.start`. Samples of which no
        such input is known begin at x, towards the likeliest wrong class.
        """
        rows = self.open
        reached_class = rank_wrong(self.model.logits(self.x_adv[rows]), self.y[rows], 1)
        self.forward[rows] += LOOKING
        aims = torch.where(self.goal[rows] < 0, reached_class[:, 0], self.goal[rows])
        pairs = [(i, k, 0) for i, k in zip(rows.tolist(), aims.tolist(), strict=True)]
        step = Step(number, attack.card.name, attack)
        self._run(step, pairs, max_passes - LOOKING, size, self.x_adv)

    def approach(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """Let an attack begin at a random input of the domain, however far away.

        Where gradients at x lead nowhere, those among the inputs that fool may still lead back.
        Not those that are led, who have :meth:`attack_spare` (and :meth:`approach_led`), nor those
        that are sure (:meth:`approach_sure`).
        """
        self._approach(~self.is_led & ~self.is_sure, attack, number, max_passes, size)

    def approach_sure(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """:meth:`approach` for samples that are sure: asking their gradients has cost passes."""
        self._approach(self.is_sure, attack, number, max_passes, size)

    def approach_led(self, attack: Attack, number: int, max_passes: int, size: int) -> None:
        """:meth:`approach` for the samples that are led."""
        self._approach(self.is_led, attack, number, max_passes, size)

    def _approach(
        self, mask: Tensor, attack: Attack, number: int, max_passes: int, size: int
    ) -> None:
        lower, upper = self.model.domain.tensors(self.x)
        noise = self.rng.fold(number).uniform(tuple(self.x.shape[1:]), self.x.dtype)
        pairs = [(i, int(self.goal[i]), 0) for i in self.open[mask[self.open]].tolist()]
        step = Step(number, attack.card.name, attack)
        self._run(step, pairs, max_passes, size, torch.lerp(lower, upper, noise))

    def _run(
        self,
        step: Step,
        pairs: list[tuple[int, int, int]],
        max_passes: int,
        size: int,
        begin: Tensor | None,
    ) -> None:
        """Jobs (sample, target, restart), which share the passes of their sample.

        They begin at x, or at the points ``begin``, one for every sample.
        """
        n_jobs = len(pairs) // max(1, len({i for i, _, _ in pairs}))
        limit = (max_passes - JUDGING) // max(1, n_jobs)
        slots = Slots(self.model, size, Rules(stop_when_fooled=False, keep_best=True))
        while pairs or not slots.is_empty:
            start, pairs = pairs[: slots.free], pairs[slots.free :]
            if start:
                self._start(slots, step, start, limit, begin)
            self._take(slots.tick(), step.stage)

    def _take(self, over: list[Ended], number: int) -> None:
        """Count what jobs that are over have spent, and judge the nearest find of each sample."""
        nearest: dict[int, Ended] = {}
        for ended in over:
            i = ended.job.sample
            self.forward[i] += ended.forward
            self.backward[i] += ended.backward
            known = nearest[i].best_score if i in nearest else -float(self.distance[i])
            if ended.best is not None and ended.best_score > known:
                nearest[i] = ended
        if nearest:
            rows = torch.tensor(list(nearest), device=self.y.device)
            points = [ended.best for ended in nearest.values() if ended.best is not None]
            self.offer(rows, torch.stack(points).to(self.x.device), number)

    def _start(
        self,
        slots: Slots,
        step: Step,
        start: list[tuple[int, int, int]],
        limit: int,
        begin: Tensor | None,
    ) -> None:
        rows, target, restart = (
            torch.tensor(column, device=self.y.device) for column in zip(*start, strict=True)
        )
        allowed = take(self.allowed, rows)
        known = (NEARER * self.distance[rows]).to(allowed.radius.dtype).minimum(allowed.radius)
        problem = Problem(
            self.x[rows],
            self.y[rows],
            target,
            allowed.resized(known),
            take(self.rng, rows).fold(step.stage).fold(target).fold(restart),
            self.logits[rows],
            start=None if begin is None else begin[rows],
        )
        jobs = [Job(i, 0, t, r, max_passes=limit) for i, t, r in start]
        slots.add(step.attack, jobs, problem, self.goal[rows])

    def offer(self, rows: Tensor, points: Tensor, number: int) -> Tensor:
        """Judge ``points`` of samples ``rows``; keep those that fool and are nearer ``(m,)``."""
        allowed = take(self.allowed, rows)
        found = judge(self.model, points, allowed, self.y[rows], self.goal[rows])
        self.forward[rows] += JUDGING
        size = allowed.distance(points)
        is_better = found.accepted & (size < self.distance[rows])
        kept = rows[is_better]
        self.distance[kept] = size[is_better]
        self.x_adv[kept] = points[is_better]
        self.found_by[kept] = number
        return is_better


def _led(known: Tensor, ranking: Ranking) -> Tensor:
    """See :attr:`Search.is_led`."""
    has_kept = ranking.secant.isfinite() & (known <= KEPT * ranking.secant)
    return (known > 0) & has_kept & (ranking.spare_secant < SPARE * known)


def _everything(x: Tensor, model: Model, norm: str) -> AllowedSet:
    """The whole domain as a ball around each sample."""
    lower, upper = model.domain.tensors(x)
    farthest = torch.maximum(upper - x, x - lower)
    return Ball(norm, length(farthest, norm).double() * (1 + 1e-6)).bind(x, model.domain)


def polish(search: Search, steps: int, number: int | None = None) -> None:
    """Move every input found towards x, one forward pass a step; the end is judged.

    The ends of searches lie close behind the boundary, so steps begin small and grow until one no
    longer fools; from there on they bisect.
    With ``number`` the polished inputs are remembered as found by that attack, else by the one that
    found the unpolished input.
    """
    rows = ((search.distance > 0) & search.distance.isfinite()).nonzero().squeeze(1)
    if len(rows) == 0 or steps < 1:
        return
    allowed, points = take(search.allowed, rows), search.x_adv[rows]
    y, goal = search.y[rows], search.goal[rows]
    low = torch.zeros_like(search.distance[rows])
    high = torch.ones_like(low)
    nearest, is_between = points.clone(), torch.zeros_like(low, dtype=torch.bool)
    for step in range(steps):
        back = (high - CLOSE * FURTHER**step).maximum(high / 2)
        middle = torch.where(is_between, (low + high) / 2, back)
        z = allowed.towards(points, middle)
        won = reached(search.model.logits(z), y, goal) & allowed.contains(z)
        nearest = torch.where(like(won, z), z, nearest)
        low, high = torch.where(won, low, middle), torch.where(won, middle, high)
        is_between |= ~won
    search.forward[rows] += steps
    owner = search.found_by[rows]
    is_better = search.offer(rows, nearest, NOBODY if number is None else number)
    if number is None:
        search.found_by[rows[is_better]] = owner[is_better]
