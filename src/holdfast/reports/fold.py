"""From the records of a journal to a report: nothing is stored twice, so nothing can disagree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch

from holdfast.engine import journal
from holdfast.errors import JournalError, ThreatError
from holdfast.plan import Plan
from holdfast.record import (
    AnyRecord,
    Attempt,
    Clean,
    Examined,
    Failure,
    Finding,
    Header,
    Outcome,
    Proven,
    Radius,
    Session,
    Spared,
    Verdict,
)
from holdfast.reports import _findings
from holdfast.reports._cascade import Step, steps_for
from holdfast.reports.report import Report
from holdfast.reports.results import Samples, StageResult, ThreatResult
from holdfast.threat import parse_threat


def from_directory(directory: Path) -> Report:
    """The report of the run in ``directory``.

    Raises:
        JournalError: where there is no journal, or it cannot be read.
    """
    return fold(journal.read(directory)).model_copy(update={"directory": directory})


@dataclass(slots=True)
class _Fate:
    """What the records say of one sample under one threat."""

    attempts: dict[tuple[int, int, int], Attempt] = field(default_factory=dict)
    spared: dict[int, int] = field(default_factory=dict)
    proven: Proven | None = None
    radius: Radius | None = None

    @property
    def winner(self) -> Attempt | None:
        return next((a for a in self.attempts.values() if a.outcome is Outcome.BROKEN), None)

    def met(self, name: str) -> list[Any]:
        """One figure of every attempt."""
        return [getattr(attempt, name) for attempt in self.attempts.values()]


@dataclass(slots=True)
class _Sorted:
    """A journal's records by what they are about; a record written twice counts once."""

    header: Header | None = None
    clean: dict[int, Clean] = field(default_factory=dict)
    fates: dict[tuple[str, int], _Fate] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    looks: dict[str, dict[int, Examined]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    def add(self, record: AnyRecord) -> None:
        match record:
            case Header():
                self.header = self.header or record
            case Clean():
                self.clean[record.sample] = record
            case Attempt():
                fate = self.fates.setdefault((record.threat, record.sample), _Fate())
                fate.attempts[record.stage, record.target, record.restart] = record
            case Spared():
                fate = self.fates.setdefault((record.threat, record.sample), _Fate())
                fate.spared[record.stage] = record.jobs
            case Proven():
                fate = self.fates.setdefault((record.threat, record.sample), _Fate())
                fate.proven = record
            case Radius():
                fate = self.fates.setdefault((record.threat, record.sample), _Fate())
                fate.radius = record
            case Examined():
                self.looks.setdefault(record.threat, {})[record.round] = record
            case Finding():
                self.findings.append(record)
            case Failure():
                self.failures.append(record)
            case Session():
                self.sessions.append(record)


def fold(records: Iterable[AnyRecord]) -> Report:
    """The report that follows from a journal's records.

    Raises:
        JournalError: where the records have no header, or one of a plan that cannot be read.
    """
    found = _Sorted()
    for record in records:
        found.add(record)
    if found.header is None:
        raise JournalError("The journal has no header: the run did not get that far. Run it again.")
    header = found.header.model_dump(mode="json")
    plan = Plan.model_validate(header["plan"])
    clean = [found.clean[sample] for sample in sorted(found.clean)]
    report = Report(
        plan_id=header["plan_id"],
        plan=plan,
        created=header["created"],
        command=header["command"],
        environment=header["environment"],
        model=header["model"],
        data=header["data"],
        samples=_samples(clean),
        threats={text: _threat(text, plan, header, clean, found) for text in plan.threats},
        failures=tuple(found.failures),
        sessions=tuple(found.sessions),
    )
    return report.model_copy(update={"warnings": _findings.collect(report, found.findings)})


def _samples(clean: list[Clean]) -> Samples:
    names = Samples.model_fields
    return Samples(**{name: tuple(getattr(record, name) for record in clean) for name in names})


def _threat(
    text: str, plan: Plan, header: dict, clean: list[Clean], found: _Sorted
) -> ThreatResult:
    norm, eps = _ball(text)
    fates = [_fate(text, record, found) for record in clean]
    looks = tuple(look for _, look in sorted(found.looks.get(text, {}).items()))
    flat = chain.from_iterable(fate.attempts.values() for fate in fates)
    steps, skipped = steps_for(plan, norm, header["model"], flat, looks)
    verdicts = [_verdict(c, fate, steps) for c, fate in zip(clean, fates, strict=True)]
    pairs = list(zip(fates, verdicts, strict=True))
    winners = [fate.winner if v is Verdict.BROKEN else None for fate, v in pairs]
    return ThreatResult(
        threat=text,
        norm=norm,
        eps=eps,
        y=tuple(record.y for record in clean),
        verdict=tuple(verdicts),
        broken_by=tuple(w.stage if w else None for w in winners),
        radius=tuple(_radius(fate, v, eps) for fate, v in pairs),
        margin=tuple(max(fate.met("margin"), default=None) for fate in fates),
        loss=tuple(max(fate.met("loss"), default=None) for fate in fates),
        confidence=tuple(min(fate.met("confidence"), default=None) for fate in fates),
        prediction=tuple(w.prediction if w else -1 for w in winners),
        prediction_confidence=tuple(w.prediction_confidence if w else 0.0 for w in winners),
        forward=tuple(sum(fate.met("forward")) for fate in fates),
        backward=tuple(sum(fate.met("backward")) for fate in fates),
        stages=_stages(steps, verdicts, fates),
        skipped=skipped,
        looks=looks,
        curve_forward=sum(fate.radius.forward for fate in fates if fate.radius),
        n_rejected=sum(sum(fate.met("rejected")) for fate in fates),
    )


def _fate(text: str, clean: Clean, found: _Sorted) -> _Fate:
    """Of one sample under one threat; empty where its own class is what the attacker wants."""
    if clean.target == clean.y:
        return _Fate()
    return found.fates.get((text, clean.sample), _Fate())


def _ball(text: str) -> tuple[str, float | None]:
    """Norm and radius of a threat; no radius where it is no ball of one size."""
    try:
        threat = parse_threat(text)
    except ThreatError:
        return text.partition(":")[0], None
    eps = torch.as_tensor(getattr(threat, "eps", float("nan")), dtype=torch.float64)
    known = eps.numel() == 1 and bool(torch.isfinite(eps).all())
    return threat.norm, float(eps) if known else None


def _verdict(clean: Clean, fate: _Fate, steps: tuple[Step, ...]) -> Verdict:
    if clean.prediction != clean.y:
        return Verdict.WRONG
    if clean.target == clean.y:
        return Verdict.UNKNOWN
    outcomes = [attempt.outcome for attempt in fate.attempts.values()]
    if Outcome.BROKEN in outcomes:
        return Verdict.BROKEN
    if fate.proven:
        return Verdict.VERIFIED
    done = [stage for stage, _, _ in fate.attempts]
    counts = {step.stage: done.count(step.stage) + fate.spared.get(step.stage, 0) for step in steps}
    complete = all(counts[step.stage] >= step.n_jobs for step in steps)
    return Verdict.UNKNOWN if complete or Outcome.STOPPED in outcomes else Verdict.UNFINISHED


def _radius(fate: _Fate, verdict: Verdict, eps: float | None) -> float | None:
    """The smallest change known to break the sample."""
    if verdict is Verdict.WRONG:
        return 0.0
    if verdict is not Verdict.BROKEN:
        return None
    winner = fate.winner
    sizes = [fate.radius.radius] if fate.radius else []
    sizes += [winner.distance] if winner and winner.distance is not None else []
    return min(sizes, default=eps)


def _stages(
    steps: tuple[Step, ...], verdicts: list[Verdict], fates: list[_Fate]
) -> tuple[StageResult, ...]:
    """What every stage did, in their order."""
    surviving = sum(v is not Verdict.WRONG for v in verdicts)
    results = []
    for step in steps:
        result = _stage(step, fates, surviving)
        surviving = result.n_surviving
        results.append(result)
    return tuple(results)


def _stage(step: Step, fates: list[_Fate], surviving: int) -> StageResult:
    """One stage, which began with ``surviving`` samples."""
    own = [[a for a in fate.attempts.values() if a.stage == step.stage] for fate in fates]
    flat = list(chain.from_iterable(own))
    broken = [i for i, row in enumerate(own) if _has(row, Outcome.BROKEN)]
    spent = [sum(fates[i].met("forward")) + sum(fates[i].met("backward")) for i in broken]
    return StageResult(
        stage=step.stage,
        attack=step.label,
        access=step.access,
        sees_less=step.sees_less,
        n=len(fates),
        n_entered=sum(bool(row) for row in own),
        n_broken=len(broken),
        n_surviving=surviving - len(broken),
        n_stopped=sum(_has(row, Outcome.STOPPED) for row in own),
        forward=sum(a.forward for a in flat),
        backward=sum(a.backward for a in flat),
        median_passes=float(median(spent)) if spent else None,
        n_zero_gradients=sum(a.zero_gradients for a in flat),
    )


def _has(attempts: list[Attempt], outcome: Outcome) -> bool:
    return any(attempt.outcome is outcome for attempt in attempts)
