"""From a plan's stages to jobs: which attacks fit, and what a sample does next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast import registry
from holdfast.attacks.base import Attack, Route
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.plan import Stage
from holdfast.record import Finding
from holdfast.threat import Access, Goal


@dataclass(frozen=True, slots=True)
class Terms:
    """Which samples a stage is for; the fields of the same names of :class:`~holdfast.plan.Stage`.

    All but ``when`` are decided by the sample's own records and key.
    """

    within: float | None = None
    share: float | None = None
    when: str | None = None

    def wants(self, left: float, job: int, draw: float) -> bool:
        """Whether job ``job`` is for a sample with this share of its margin left.

        ``draw`` is the sample's own uniform random number.
        """
        is_near = self.within is None or left * (job + 1) < self.within
        return is_near and (self.share is None or draw < self.share)


@dataclass(frozen=True, slots=True)
class Step:
    """One stage that fits: its place in the plan, its label, its attack, its gradients' route."""

    stage: int
    label: str
    attack: Attack
    route: Route | None = None
    terms: Terms = Terms()
    starts_at_best: bool = False


def fitting(stages: Sequence[Stage], norm: str, access: Access) -> tuple[list[Step], list[Finding]]:
    """The stages that can run in this norm with this access, and what is left out and why.

    Raises:
        PlanError: where none fits, or one cannot begin where it should.
    """
    steps, findings = [], []
    for i, stage in enumerate(stages):
        attack = registry.attack(stage.attack, **stage.options)
        card = attack.card
        _check_norms(i, stage)
        if (stage.norms and norm not in stage.norms) or (
            stage.access and access not in stage.access
        ):
            continue  # the cascade reserves this stage for others
        if norm not in card.norms:
            reason = f"it does not work in {norm}"
        elif not access.allows(card.access):
            reason = f"it needs {card.access.value}, and the attacker sees {access.value} only"
        else:
            terms = Terms(stage.within, stage.share, stage.when)
            route, at_best = _averaged(stage.draws), _starts_at_best(stage, attack)
            steps.append(Step(i, stage.describe(), attack, route, terms, at_best))
            continue
        text = f"The attack {stage.describe()} was left out: {reason}."
        findings.append(Finding(code="attack_left_out", level="info", text=text))
    if not steps:
        names = ", ".join(dict.fromkeys(stage.attack for stage in stages))
        raise PlanError(
            f"No attack of the cascade ({names}) works in {norm} with access to {access.value}. "
            f"{_able(norm, access)}, or give the attacker more access "
            "('holdfast list attacks' shows what each one needs)."
        )
    return steps, findings


def _check_norms(number: int, stage: Stage) -> None:
    """A stage for a norm that nobody knows would never run, and nobody would notice."""
    known = sorted(frozenset().union(*(kind.card.norms for kind in registry.attacks().values())))
    if unknown := [name for name in stage.norms if name not in known]:
        raise PlanError(
            f"Stage {number + 1} of the cascade ({stage.attack}) is for the norm {unknown[0]!r}, "
            f"which no attack knows. Norms: {', '.join(known)}."
        )


def _starts_at_best(stage: Stage, attack: Attack) -> bool:
    """Whether jobs begin at the best point of earlier stages."""
    if stage.start is None or attack.card.takes_start:
        return stage.start is not None
    able = [name for name, kind in registry.attacks().items() if kind.card.takes_start]
    raise PlanError(
        f"The stage {stage.describe()} has start={stage.start!r}, but the attack "
        f"{stage.attack!r} begins where it always does. Leave 'start' out, or use one of: "
        f"{', '.join(able)}."
    )


def _able(norm: str, access: Access) -> str:
    """What would work, in words."""
    cards = [kind.card for kind in registry.attacks().values()]
    fit = [c.name for c in cards if norm in c.norms and access.allows(c.access)]
    return f"Use a cascade with one of: {', '.join(fit)}" if fit else "Write an attack that does"


def _averaged(draws: int | None) -> Route | None:
    """The route of a stage with ``draws`` of its own."""
    if draws is None:
        return None
    from holdfast.trust.routes import route  # built on this module

    return route("expectation", draws=draws)


def walk(step: Step, ranked: Sequence[int], goal: int) -> list[tuple[int, int]]:
    """The jobs of one sample in one stage, in order: (target, restart).

    ``ranked`` are the wrong classes, likeliest first; ``goal`` is the class that a targeted
    attacker wants, or -1.
    """
    n_targets = step.attack.option("n_targets", 0)
    targets = [goal] if goal >= 0 or n_targets == 0 else list(ranked[:n_targets])
    restarts = step.attack.option("restarts", 1)
    return [(target, restart) for restart in range(restarts) for target in targets]


def parts(steps: Sequence[Step]) -> list[int]:
    """Where the cascade pauses: ends of its parts, each decided on when the last one is over."""
    starts = [i for i, step in enumerate(steps) if step.terms.when and i > 0]
    return [*starts, len(steps)]


def has_found(steps: Sequence[Step], broken_by: np.ndarray) -> bool:
    """Whether one of the stages for a random share of the samples broke any."""
    audits = [step.stage for step in steps if step.terms.share is not None]
    return bool(np.isin(broken_by, audits).any())


def rank_wrong(logits: Tensor, y: Tensor, n: int) -> Tensor:
    """The ``n`` likeliest wrong classes ``(m, n)``, or as many as there are."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(n, logits.shape[1] - 1), dim=1).indices


def goals(goal: Goal, logits: Tensor, y: Tensor, rng: Rng) -> Tensor:
    """The class that the attacker wants of each sample ``(n,)``; -1 for any wrong one.

    Raises:
        PlanError: where the class does not exist.
    """
    if goal.target is None:
        return torch.full_like(y, -1)
    k = logits.shape[1]
    if isinstance(goal.target, int):
        if not 0 <= goal.target < k:
            raise PlanError(f"There is no class {goal.target}: the model has classes 0 to {k - 1}.")
        return torch.full_like(y, goal.target)
    if goal.target == "runner_up":
        return logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    if goal.target == "least_likely":
        return logits.scatter(1, y[:, None], torch.inf).argmin(1)
    other = rng.integers(k - 1)
    return other + (other >= y)
