"""One attack on one batch, without a journal: what ``PGD(steps=40)(model, x, y, threat)`` runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdfast import registry
from holdfast.attacks.base import Attack, Problem
from holdfast.engine.cascade import Step, rank_wrong, walk
from holdfast.engine.jobs import Job
from holdfast.engine.preflight import preflight
from holdfast.engine.random import Rng
from holdfast.engine.scan import inside, scan
from holdfast.engine.slots import Rules, Slots
from holdfast.errors import DataError, PlanError
from holdfast.model import Model
from holdfast.record import Outcome
from holdfast.rows import take
from holdfast.threat import Threat, parse_threat


def attack_batch(
    attack: Attack,
    model: Model | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    threat: Threat | str,
    *,
    targets: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    stop: str = "fooled",
) -> Tensor:
    """See :meth:`holdfast.attacks.base.Attack.__call__`."""
    from holdfast.data import ArrayData, as_inputs, as_labels

    if stop not in ("fooled", "budget"):
        raise PlanError(f"stop is {stop!r}; use 'fooled' or 'budget'.")
    model = Model.wrap(model)
    threat = threat if isinstance(threat, Threat) else parse_threat(threat)
    x, y = as_inputs(x), as_labels(y)
    targets = None if targets is None else as_labels(targets, "targets")
    _check_fit(attack, threat, model, targets, y)
    data = ArrayData(x.detach(), y)
    keys = scan(ArrayData(x.detach().cpu(), y.cpu()), model.domain).keys
    threat.check(model.domain, data.shape)
    with model.session():
        preflight(model, *ArrayData(x.detach(), y).fetch(range(min(len(x), 16))), y)
        _check_access(attack, model)  # again: a first look may have found no gradients
        size = batch_size or model.batch_size or model.call_rows(data.shape)
        return _Batch(attack, model, x, y, threat, targets, keys, seed).run(size, stop)


def _check_fit(
    attack: Attack, threat: Threat, model: Model, targets: Tensor | None, y: Tensor
) -> None:
    card = attack.card
    if threat.norm not in card.norms:
        raise PlanError(
            f"The attack {card.name!r} does not work in {threat.norm}; it works in "
            f"{', '.join(sorted(card.norms))}."
        )
    _check_access(attack, model)
    if targets is not None and targets.shape != y.shape:
        raise DataError(f"targets {tuple(targets.shape)} and labels {tuple(y.shape)} differ.")


def _check_access(attack: Attack, model: Model) -> None:
    card, known = attack.card, registry.attacks()
    if not model.access.allows(card.access):
        content = [name for name, kind in known.items() if model.access.allows(kind.card.access)]
        raise PlanError(
            f"The attack {card.name!r} needs {card.access.value}; the model gives "
            f"{model.access.value} only. Attacks content with that: {', '.join(content)}."
        )


class _Batch:
    """The rows of one call and where they stand."""

    def __init__(
        self,
        attack: Attack,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        targets: Tensor | None,
        keys: Tensor,
        seed: int,
    ) -> None:
        self.model, self.step = model, Step(0, attack.card.name, attack)
        self.home = x
        self.x = inside(x.detach().float().to(model.device), model.domain)
        self.y = y.long().to(model.device)
        none = torch.full_like(self.y, -1)
        self.goal = none if targets is None else targets.long().to(model.device)
        self.allowed = threat.bind(self.x, model.domain)
        self.logits = model.logits(self.x)
        self.rng = Rng(keys.to(model.device)).fold(seed)
        ranked = rank_wrong(self.logits, self.y, attack.option("n_targets", 0)).tolist()
        self.jobs = [
            walk(self.step, row, goal) for row, goal in zip(ranked, self.goal.tolist(), strict=True)
        ]

    def run(self, size: int, stop: str) -> Tensor:
        """All jobs of all rows; the changed inputs ``(n, *shape)``."""
        slots = Slots(self.model, size, Rules(stop == "fooled", keep_best=True))
        found: dict[int, Tensor] = {}
        score = [-math.inf] * len(self.x)
        waiting = [(i, 0) for i in range(len(self.x))]
        while waiting or not slots.is_empty:
            start, waiting = waiting[: slots.free], waiting[slots.free :]
            if start:
                self._start(slots, start)
            for ended in slots.tick():
                i = ended.job.sample
                if ended.x_adv is not None:
                    found[i] = ended.x_adv
                    continue
                if ended.best is not None and ended.best_score > score[i]:
                    found[i], score[i] = ended.best, ended.best_score
                following = ended.job.restart + 1
                if following < len(self.jobs[i]) and ended.outcome is not Outcome.BROKEN:
                    waiting.append((i, following))
        return self._assembled(found)

    def _assembled(self, found: dict[int, Tensor]) -> Tensor:
        """The points that were found, in their rows; the clean inputs elsewhere."""
        result = self.x.clone()
        if found:
            rows = torch.tensor(list(found), device=result.device)
            result[rows] = torch.stack([point.to(result.device) for point in found.values()])
        return result.to(device=self.home.device, dtype=self.home.dtype)

    def _start(self, slots: Slots, start: list[tuple[int, int]]) -> None:
        """Job ``number`` of sample ``i``; the number stands in the job's restart."""
        rows = torch.tensor([i for i, _ in start], device=self.x.device)
        pairs = [self.jobs[i][number] for i, number in start]
        target = torch.tensor([t for t, _ in pairs], device=self.x.device)
        restart = torch.tensor([r for _, r in pairs], device=self.x.device)
        problem = Problem(
            self.x[rows],
            self.y[rows],
            target,
            take(self.allowed, rows),
            take(self.rng, rows).fold(target).fold(restart),
            self.logits[rows],
        )
        jobs = [Job(i, 0, int(t), number) for (i, number), (t, _) in zip(start, pairs, strict=True)]
        slots.add(self.step.attack, jobs, problem, self.goal[rows])
