"""The verdict on trust in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast import registry
from holdfast.record import Examined, Suspicion
from holdfast.reports._trust import Confidence, Lowering, Trust
from holdfast.reports._words import number, percent
from holdfast.reports.report import Report
from holdfast.reports.results import ThreatResult
from holdfast.threat import Access

_MOST_REASONS = 2
_LONGER = "Longer attacks are left to the cascade 'standard': run it to see how far it falls."

_TOO_FEW = (
    "Whether attacks were misled was not checked: the unbroken samples are too few to tell. Audit "
    "more samples."
)


def headline(report: Report, result: ThreatResult) -> str:
    """Whether to trust the number, in one or two sentences; empty where nobody asked."""
    trust = result.trust
    match trust.confidence:
        case Confidence.TRUSTED:
            return _trusted(trust, result)
        case Confidence.LOWERED:
            return _lowered(report, trust)
        case Confidence.HELD:
            return (
                f"The checks had doubts, because {because(trust)}. But what was done about it "
                f"broke no more samples ({_acts(result)}), so the number stands for now."
            )
        case Confidence.OPEN:
            return f"Don't trust this number, because {because(trust)}. {_idle(report, trust)}"
        case Confidence.UNKNOWN:
            return _TOO_FEW if result.looks and result.is_attacked else ""


def _trusted(trust: Trust, result: ThreatResult) -> str:
    if not trust.n_probed:
        ends = "broken or proven" if result.verified_accuracy.k else "broken"
        return (
            f"Trust this number: nearly every sample was {ends}, and every break was replayed, so "
            "there is little that a misled attack could have missed."
        )
    return (
        f"Trust this number: {trust.n_checks} checks on {trust.n_probed} unbroken samples found no "
        "sign that the attacks were misled."
    )


def _lowered(report: Report, trust: Trust) -> str:
    assert trust.first is not None
    steps = "; ".join(fall(step) for step in trust.lowered)
    rest = f" {_LONGER}" if report.plan.trust == "reroute" and _is_too_short(trust) else ""
    return (
        f"Don't trust the first number, {percent(trust.first.value)}, because {because(trust)}. "
        f"Here is what lowered it: {steps}.{rest}"
    )


def _is_too_short(trust: Trust) -> bool:
    return any(reason.check == "step_count" for reason in trust.reasons)


def fall(step: Lowering) -> str:
    """``93.3% → 1.7% by apgd(steps=100), gradients through round``."""
    return f"{percent(step.before)} → {percent(step.after)} by {step.attack}"


def because(trust: Trust) -> str:
    """The reasons, causes before signs."""
    causes = [s for s in trust.reasons if s.is_cause]
    told = (causes or list(trust.reasons))[:_MOST_REASONS]
    others = len(trust.reasons) - len(told)
    more = "" if not others else f" ({others} other sign{'s' if others > 1 else ''} of it)"
    return " and ".join(s.text for s in told) + more


def _acts(result: ThreatResult) -> str:
    added = [a.label for look in result.looks for a in look.added]
    return "; ".join(added) or "the plan's attacks by another route"


def _idle(report: Report, trust: Trust) -> str:
    if not trust.n_probed:
        return "The unbroken samples are too few to do something about it: audit more."
    if report.plan.trust == "look":
        return "The plan only looks (trust = look): let it act, and see how far the number falls."
    if report.plan.trust == "reroute":
        return _LONGER
    return "Nothing that Holdfast can do about it by itself was left to try."


def unchecked(report: Report) -> list[str]:
    """Why it is not known whether attacks were misled, where that is so."""
    if not any(r.is_attacked and not r.looks for r in report.threats.values()):
        return []
    if report.access is not Access.GRADIENTS:
        why = (
            f"an attacker who sees {report.access} only has no gradients that could mislead. "
            "Whether one with gradients would break more samples is not known"
        )
    elif report.plan.trust == "off":
        why = "the plan says so (trust = off)"
    else:
        why = "the run ended before, or its attacks use no gradients"
    return [f"It was not checked whether the attacks were misled: {why}."]


@dataclass(frozen=True, slots=True)
class Row:
    """A check as the page lists it."""

    title: str
    outcome: str
    is_doubt: bool


def rows(looks: Sequence[Examined]) -> list[Row]:
    """Every check that was made, and what it found, doubts first."""
    found: dict[str, Suspicion] = {s.check: s for look in looks for s in look.suspicions}
    known = registry.checks()
    made = [name for look in looks for name in look.checks]
    listed = [
        Row(
            known[name].card.title if name in known else name,
            found[name].text if name in found else "nothing found",
            name in found,
        )
        for name in dict.fromkeys(made)
    ]
    return sorted(listed, key=lambda row: not row.is_doubt)


def cost(report: Report, trust: Trust) -> str:
    """What the looks cost."""
    n = max(len(report.samples), 1)
    return f"{number(round(trust.n_passes / n, 1))} passes per sample"
