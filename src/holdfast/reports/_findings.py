"""What a reader of a report must know: what the run noticed, and what follows from its records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from holdfast.record import Finding
from holdfast.reports._words import interval
from holdfast.reports.report import Report
from holdfast.reports.results import ThreatResult

_ORDER = ("error", "warning", "info")
_ENOUGH = 20  # samples, below which a rate says next to nothing
_WIDE = 0.1  # an interval wider than ten points leaves the first digit open


def collect(report: Report, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The run's own findings and those derived here, each once, the most severe first.

    A resumed run repeats its checks: findings that differ in their figures only are one.
    """
    derived = [*_of_all(report), *(f for r in report.threats.values() for f in _of_threat(r))]
    unique: dict[tuple[str, ...], Finding] = {}
    for finding in (*found, *derived):
        unique[finding.code, finding.threat, re.sub(r"[\d.e+-]+", "#", finding.text)] = finding
    return tuple(sorted(unique.values(), key=lambda f: _ORDER.index(f.level)))


def _of_all(report: Report) -> Iterator[Finding]:
    clean, chance = report.clean_accuracy, 1 / max(int(report.model.get("n_classes") or 2), 2)
    for failure in report.failures:
        text = f"{failure.where} ended in an error: {failure.error}. Mend it and resume the run."
        yield Finding(code="failure", level="error", text=text)
    if clean.n and not clean.k:
        text = (
            f"The model gets none of the {clean.n} samples right, so there was nothing to attack. "
            "Check the labels, the order of the classes and the normalisation (--mean, --std)."
        )
        yield Finding(code="no_correct_samples", level="error", text=text)
    elif clean.n >= _ENOUGH and clean.lower <= chance:
        text = (
            f"The model gets {clean.k} of {clean.n} samples right, not clearly better than "
            "guessing. Check "
            "the labels, the order of the classes and the normalisation (--mean, --std)."
        )
        yield Finding(code="guessing", level="warning", text=text)
    if report.n_unfinished:
        text = (
            f"{report.n_unfinished} of {report.n_samples} samples did not get all attacks of the "
            "plan: the run ended before. They count as unbroken, so the robust accuracy may be "
            "too high by that many. Resume the run to finish it (holdfast audit --resume DIR)."
        )
        yield Finding(code="unfinished", level="warning", text=text)
    n_wanted = sum(t == y for t, y in zip(report.samples.target, report.samples.y, strict=True))
    if n_wanted:
        text = (
            f"{n_wanted} samples are of the class that the attacker wants: there was nothing to "
            "attack, and they count as unbroken."
        )
        yield Finding(code="already_target", level="info", text=text)
    rate = report.robust_accuracy
    is_attacked = any(result.is_attacked for result in report.threats.values())
    if is_attacked and rate.upper - rate.lower > _WIDE:
        text = (
            f"{rate.n} samples leave the robust accuracy open: {interval(rate)}. Audit more "
            "samples for a sharper number."
        )
        yield Finding(code="few_samples", level="info", text=text)


def _of_threat(result: ThreatResult) -> Iterator[Finding]:
    if not result.stages:
        text = (
            f"Nothing was tried under {result.threat}, so the samples that are right unchanged say "
            f"nothing about robustness. {' '.join(result.skipped)}"
        )
        yield Finding(code="nothing_attacked", level="error", text=text, threat=result.threat)
    if result.n_stopped:
        text = (
            f"For {result.n_stopped} samples the budget per sample ran out before all attacks were "
            "tried. They count as unbroken; a larger budget may break more."
        )
        yield Finding(code="sample_budget", level="info", text=text, threat=result.threat)
