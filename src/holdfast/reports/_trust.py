"""How far a number can be trusted: what the looks found, and what lowered it since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from holdfast.evaluation.statistics import Rate
from holdfast.record import Examined, Suspicion, Verdict

if TYPE_CHECKING:
    from holdfast.reports.results import StageResult, ThreatResult


_LITTLE = 0.1
"""Share of the samples that were right: no more unbroken ones leave little to be wrong about."""


class Confidence(StrEnum):
    """Whether the attacks were misled."""

    TRUSTED = "trusted"
    """No check found a sign of it."""
    LOWERED = "lowered"
    """They were, and other attacks have lowered the first number since."""
    HELD = "held"
    """There were signs, but nothing that was done about it lowered the number."""
    OPEN = "open"
    """There are signs, and nothing could be done about it."""
    UNKNOWN = "unknown"
    """It could not be checked."""


@dataclass(frozen=True, slots=True)
class Lowering:
    """An attack that took the number down after the first one."""

    attack: str
    before: float
    after: float
    is_added: bool


@dataclass(frozen=True, slots=True)
class Trust:
    """What a reader must know of a robust accuracy.

    Attributes:
        confidence: The verdict.
        first: The number that the attacks gave which were misled; None where none were.
        lowered: What took it down since, in order.
        reasons: Why the attacks were misled, causes first.
        n_checks, n_probed: Checks made, and samples that they looked at.
        n_passes: What the looks cost, forward plus backward.
    """

    confidence: Confidence
    first: Rate | None = None
    lowered: tuple[Lowering, ...] = ()
    reasons: tuple[Suspicion, ...] = ()
    n_checks: int = 0
    n_probed: int = 0
    n_passes: int = 0


def trust_in(result: ThreatResult) -> Trust:
    """The verdict on one threat's number."""
    looks = result.looks
    if not looks or not result.is_attacked:
        return Trust(Confidence.UNKNOWN)
    reasons = tuple(s for look in looks for s in look.suspicions)
    reasons = tuple(sorted(reasons, key=lambda s: not s.is_cause))
    n_passes = sum(look.forward + look.backward for look in looks)
    n_checks = sum(len(look.checks) for look in looks)
    n_probed = max(look.n_probed for look in looks)
    first, lowered = _fall(result, reasons) if reasons else (None, ())
    is_settled = result.count(Verdict.UNKNOWN, Verdict.UNFINISHED) <= _LITTLE * result.n_right
    if not reasons and not n_probed and not is_settled:
        return Trust(Confidence.UNKNOWN, n_checks=n_checks, n_passes=n_passes)
    if not reasons or (not lowered and not n_probed and is_settled):
        return Trust(Confidence.TRUSTED, None, (), reasons, n_checks, n_probed, n_passes)
    confidence = Confidence.HELD if _has_acted(looks) else Confidence.OPEN
    if lowered:
        confidence = Confidence.LOWERED
    return Trust(confidence, first, lowered, reasons, n_checks, n_probed, n_passes)


def _has_acted(looks: Sequence[Examined]) -> bool:
    return any(look.added or look.through for look in looks)


def _fall(result: ThreatResult, reasons: Sequence[Suspicion]) -> tuple[Rate, tuple[Lowering, ...]]:
    """The number after the attacks that were misled, and every stage that lowered it then."""
    stages, n = result.stages, _n_misled(result, reasons)
    clean = Rate.of(result.n_right, result.n)
    first = stages[n - 1].robust_accuracy if n else clean
    added = {a.stage for look in result.looks for a in look.added}
    lowered, before = [], first.value
    for stage in stages[n:]:
        after = stage.robust_accuracy.value
        if stage.n_broken:
            lowered.append(Lowering(stage.attack, before, after, stage.stage in added))
        before = after
    return first, tuple(lowered)


def _n_misled(result: ThreatResult, reasons: Sequence[Suspicion]) -> int:
    """How many stages at the beginning were misled."""
    stages = result.stages
    if result.looks[0].through:
        return 0
    own = _n_own(stages, {a.stage for look in result.looks for a in look.added})
    if any(not s.stages for s in reasons if s.check != "black_box_wins"):
        return own
    named = {stage for s in reasons for stage in s.stages}
    places = [i for i, stage in enumerate(stages[:own]) if stage.stage in named]
    late = [own] if any(s.check == "black_box_wins" for s in reasons) else []
    return max([place + 1 for place in places] + late, default=0)


def _n_own(stages: Sequence[StageResult], added: set[int]) -> int:
    """Stages at the beginning that follow the model's own gradients."""
    n = 0
    while n < len(stages) and (stages[n].stage < 0 or _follows(stages[n])):
        if stages[n].stage in added:
            break
        n += 1
    return n


def _follows(stage: StageResult) -> bool:
    return stage.access == "gradients" and not stage.sees_less
