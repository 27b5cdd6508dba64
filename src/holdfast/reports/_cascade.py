"""Which attacks of a plan work under a threat, and how many jobs each unbroken sample gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast import registry
from holdfast.engine import cascade
from holdfast.engine.cascade import fitting, walk
from holdfast.engine.ledger import REUSED
from holdfast.errors import PlanError
from holdfast.plan import Plan
from holdfast.record import Added, Attempt, Examined
from holdfast.threat import Access


@dataclass(frozen=True, slots=True)
class Step:
    """A stage that works here: ``n_jobs`` per sample that nothing breaks."""

    stage: int
    label: str
    access: str
    n_jobs: int
    sees_less: bool = False


def granted(plan: Plan, model: dict[str, Any]) -> Access:
    """What the attacker saw: no more than the plan allows, nor than the model gives."""
    given = Access(model.get("access") or plan.access)
    return given if plan.access.allows(given) else plan.access


def steps_for(
    plan: Plan,
    norm: str,
    model: dict[str, Any],
    attempts: Iterable[Attempt],
    looks: Sequence[Examined],
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps under a threat of this norm, and why other attacks of the plan were left out.

    They come in the order of the run: stages that a look added stand where that look was. Stages
    that left attempts are steps whatever is installed here: no record is passed over.
    """
    seen = {a.stage: a.attack for a in attempts}
    try:
        steps, findings = fitting(plan.resolved_stages, norm, granted(plan, model))
        skipped = tuple(finding.text for finding in findings)
    except PlanError as error:
        steps, skipped = [], () if seen else (str(error),)
    wrong = range(max(int(model.get("n_classes") or 2) - 1, 1))
    goal = 0 if plan.goal.is_targeted else -1
    found = {s: Step(s, label, "", int(s != REUSED)) for s, label in seen.items()}
    for s in steps:
        card, label = s.attack.card, seen.get(s.stage, s.label)
        n_jobs = len(walk(s, wrong, goal))
        found[s.stage] = Step(s.stage, label, card.access.value, n_jobs, card.sees_less)
    after = {a.stage: look.after for look in looks for a in look.added}
    for look in looks:
        for added in look.added:
            n_jobs = _n_jobs(added, wrong, goal)
            found[added.stage] = Step(added.stage, added.label, "gradients", n_jobs)
    order = sorted(found, key=lambda stage: (after.get(stage, stage), stage))
    return tuple(found[stage] for stage in order), skipped


def _n_jobs(added: Added, wrong: Sequence[int], goal: int) -> int:
    """Jobs per sample of a stage that was added."""
    try:
        attack = registry.attack(added.attack, **added.options)
    except PlanError:
        return 1
    return len(walk(cascade.Step(added.stage, added.label, attack), wrong, goal))
