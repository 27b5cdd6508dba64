"""What a reader of a report must know: what the run noticed, and what follows from its records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from holdfast.evaluation.statistics import Rate
from holdfast.record import Finding
from holdfast.reports.report import Report
from holdfast.reports.results import ThreatResult
from holdfast.threat import Access

_ORDER = ("error", "warning", "info")
_WIDE = 0.1  # an interval wider than ten points leaves the first digit open
_MANY = 0.01  # more than one sample in a hundred is no accident of the last attack
_OFTEN = 0.05  # a few saturated samples have no gradient in every network


def collect(report: Report, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The run's own findings and those derived here, each once, the most severe first."""
    derived = [*_of_all(report), *(f for r in report.threats.values() for f in _of_threat(r))]
    unique: dict[tuple[str, str], Finding] = {}
    for finding in (*found, *derived):
        unique.setdefault((finding.code, finding.threat), finding)
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
    elif clean.n and clean.lower <= chance:
        text = (
            f"The model gets {clean.k} of {clean.n} samples right, no better than guessing. Check "
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
    rate = report.robust_accuracy
    if rate.n and rate.upper - rate.lower > _WIDE:
        text = (
            f"{rate.n} samples leave the robust accuracy open between {rate.lower:.1%} and "
            f"{rate.upper:.1%}. Audit more samples for a sharper number."
        )
        yield Finding(code="few_samples", level="info", text=text)


def _of_threat(result: ThreatResult) -> Iterator[Finding]:
    if not result.stages:
        text = (
            f"No attack of the plan works under {result.threat}: nothing was tried, and the "
            "samples that are right unchanged say nothing about robustness. "
            + "".join(f"{reason} " for reason in result.skipped)
            + "Grant more access, or use a cascade with an attack for this case."
        )
        yield Finding(code="nothing_attacked", level="error", text=text, threat=result.threat)
    if result.n_stopped:
        text = (
            f"For {result.n_stopped} samples the budget per sample ran out before all attacks were "
            "tried. They count as unbroken; a larger budget may break more."
        )
        yield Finding(code="sample_budget", level="info", text=text, threat=result.threat)
    if result.n_rejected:
        text = (
            f"{result.n_rejected} claimed successes were refused: the input was not allowed, or "
            "the answer did not repeat. Only replayed ones are counted."
        )
        yield Finding(code="rejected_claims", level="info", text=text, threat=result.threat)
    yield from _masking(result)


def _masking(result: ThreatResult) -> Iterator[Finding]:
    """Signs that gradients mislead: then attacks that use them say too little."""
    gradients = [s for s in result.stages if s.access == Access.GRADIENTS]
    n_zero, n_backward = (
        sum(s.n_zero_gradients for s in gradients),
        sum(s.backward for s in gradients),
    )
    if n_backward and n_zero > _OFTEN * n_backward:
        text = (
            f"{n_zero / n_backward:.0%} of the gradients were zero or not finite: gradient attacks "
            "were blind there, and the robust accuracy may be far too high. Look for saturated "
            "outputs, hard thresholds or quantisation, and trust attacks without gradients."
        )
        yield Finding(code="zero_gradients", level="warning", text=text, threat=result.threat)
    later = _after(result, gradients[-1].stage if gradients else None)
    rate = Rate.of(later, result.n)
    if later and rate.value > _MANY:
        text = (
            f"Attacks without gradients broke {later} samples that gradient attacks had not: the "
            "gradients seem to be masked, and stronger attacks would likely break more. Try an "
            "adaptive attack before trusting this number."
        )
        yield Finding(
            code="square_beats_gradients", level="warning", text=text, threat=result.threat
        )


def _after(result: ThreatResult, last: int | None) -> int:
    """Samples broken without gradients after gradient attacks had failed."""
    stages: Sequence = result.stages if last is not None else ()
    return sum(s.n_broken for s in stages if s.access not in ("", Access.GRADIENTS))
