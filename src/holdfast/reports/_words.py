"""The result in plain words, for whoever has never heard of a norm ball."""

from __future__ import annotations

import math
import re

from holdfast.evaluation.statistics import Rate
from holdfast.record import Finding, Verdict
from holdfast.reports._pictures import layout
from holdfast.reports.report import Report
from holdfast.reports.results import SAFE, ThreatResult
from holdfast.threat import Access

VERDICTS: dict[Verdict, tuple[str, str]] = {
    Verdict.VERIFIED: ("proven safe", "no allowed change fools the model; there is a proof"),
    Verdict.UNKNOWN: ("not broken", "survived every attack tried; this is no proof"),
    Verdict.UNFINISHED: ("not fully tested", "the run ended before every attack was tried"),
    Verdict.BROKEN: ("broken", "an allowed change was found and replayed that fools the model"),
    Verdict.WRONG: ("wrong without any attack", "counts as not robust"),
}


ASIDE = ("attack_left_out",)
"""Findings that are told with what was tried, not among the warnings."""
_SAME = 1.005  # sizes that agree in the three digits shown


def number(n: float) -> str:
    """A count or a cost, with thousands separated."""
    return f"{n:,.0f}" if n == round(n) or abs(n) >= 100 else f"{n:,.1f}"


def percent(value: float) -> str:
    """A rate as a percentage; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"


def interval(rate: Rate) -> str:
    """The interval of a rate."""
    return f"{100 * rate.lower:.1f} to {100 * rate.upper:.1f}%"


def size(value: float | None) -> str:
    """A size in input units; a dash where it is not known."""
    return "–" if value is None else f"{value:.4g}"


def unit(result: ThreatResult) -> tuple[float, str]:
    """How sizes are written: what to multiply by, and what follows; 255ths where the user does."""
    return (255.0, "/255") if result.threat.endswith("/255") else (1.0, "")


def change_size(result: ThreatResult, value: float | None) -> str:
    """A size of a change in the threat's own way of writing."""
    factor, suffix = unit(result)
    return "–" if value is None else f"{factor * value:.3g}{suffix}"


def size_of_example(result: ThreatResult, shown: float | None, radius: float) -> str:
    """How large the change shown is, and how small a change suffices."""
    least = f"{change_size(result, radius)} ({result.norm})"
    if shown is None or shown <= radius * _SAME:
        return f"Size of the change: {least}."
    return f"Size of the change: {change_size(result, shown)}; {least} is enough."


def bounds(report: Report) -> tuple[float, float] | None:
    """The domain's bounds, where they are the same for every feature."""
    domain = report.model.get("domain")
    if isinstance(domain, str):
        found = re.fullmatch(r"\[(\S+), (\S+)\]", domain)
        domain = found.groups() if found else None
    try:
        lower, upper = (float(v) for v in domain)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        return None
    return (lower, upper) if lower < upper else None


def change(report: Report, result: ThreatResult) -> str:
    """What the attacker may do: ``change every pixel by at most 8/255 (3.1 % of its range)``."""
    _, _, text = result.threat.partition(":")
    kind = layout(tuple(report.data.get("shape") or ()))
    one = "pixel" if kind else "feature"
    match result.norm:
        case "linf":
            return f"change every {one} by at most {text}{_share(report, result)}"
        case "l2":
            return f"change the input by at most {text} in total (length of the change, l2 norm)"
        case "l1":
            return f"change the input by at most {text} in total (sum of all changes, l1 norm)"
        case "l0":
            what = "single colour values" if kind and kind.n_colours == 3 else f"{one}s"
            return f"change any {text} {what} to anything that is a valid input"
    return f"change the input within {result.threat}"


def _share(report: Report, result: ThreatResult) -> str:
    limits = bounds(report)
    if result.eps is None or limits is None:
        return ""
    return f" ({100 * result.eps / (limits[1] - limits[0]):.2g}% of its range)"


def effect(report: Report) -> str:
    """What a successful attacker does."""
    goal = report.plan.goal
    if not goal.is_targeted:
        return "changes the answer"
    if isinstance(goal.target, int):
        return f"makes the model answer “{report.class_name(goal.target)}”"
    return f"makes the model give {goal.describe()}"


def lead(report: Report) -> list[str]:
    """The result in a few sentences, the most important first."""
    clean = report.clean_accuracy
    if not clean.n:
        return ["The run ended before any sample was looked at: there is no result yet."]
    if not clean.k:
        return [
            f"The model gets none of the {number(clean.n)} samples right, so there was nothing to "
            "attack. This says nothing about robustness."
        ]
    each = [_result(report, result) for result in report.threats.values()]
    if not any(result.is_attacked for result in report.threats.values()):
        return each
    union = [_union(report)] if len(report.threats) > 1 else []
    return [*union, *each, _bound(report), *_caveats(report)]


def _result(report: Report, result: ThreatResult) -> str:
    who = f"An attacker who may {change(report, result)}"
    broken, right = result.count(Verdict.BROKEN), report.clean_accuracy.k
    if not result.is_attacked:
        return f"Nothing was tried with changes of {result.threat}: that case stays open."
    return f"{who} {effect(report)} for {_of(broken, right)} that the model gets right."


def _of(part: int, whole: int) -> str:
    if part == 0:
        return f"none of the {number(whole)} samples"
    if part == whole:
        return f"all {number(whole)} samples" if whole > 1 else "the one sample"
    return f"{number(part)} of the {number(whole)} samples"


def _union(report: Report) -> str:
    broken = sum(v is Verdict.BROKEN for v in report.verdicts)
    who = f"An attacker who can choose among {len(report.threats)} kinds of change"
    whom = f"{_of(broken, report.clean_accuracy.k)} that the model gets right"
    return f"{who} {effect(report)} for {whom}."


def _bound(report: Report) -> str:
    rate = report.robust_accuracy
    kept = f"The model stays right on {number(rate.k)} of {_some(rate.n)}"
    if not all(r.is_attacked for r in report.threats.values()):
        kept += " under what was tried"
    most = "at most " if rate.k else ""
    bound = f"{kept}: its robust accuracy is {most}{percent(rate.value)}"
    return (
        f"{bound} on these samples{_proven(report)}. For others of the same kind the same figure "
        f"lies between {percent(rate.lower)} and {percent(rate.upper)}, with 95% confidence."
    )


def _proven(report: Report) -> str:
    """What is shown by proof, where proofs were tried with success."""
    proven = report.verified_accuracy
    if proven.k == 0:
        return ""
    if proven.k == report.robust_accuracy.k:
        return ", and that is exact: there is a proof for every one of them"
    return f", and at least {percent(proven.value)}: for {_some(proven.k)} there is a proof"


def _caveats(report: Report) -> list[str]:
    sentences = []
    if report.n_unfinished:
        sentences.append(
            f"The run ended early: {_some(report.n_unfinished)} did not get all attacks, so the "
            "true figure may be lower by that many."
        )
    open_samples = sum(v in SAFE and v is not Verdict.VERIFIED for v in report.verdicts)
    if open_samples:
        sentences.append(
            "“At most”, because a sample that nothing has broken is not proven safe: a stronger "
            "attack may still break it."
        )
    return sentences


def _some(n: int) -> str:
    return "1 sample" if n == 1 else f"{number(n)} samples"


def facts(report: Report) -> list[tuple[str, str]]:
    """Everything that identifies the run, by name."""
    known = [("plan", report.plan_id), ("seed", str(report.plan.seed))]
    known += list(report.environment.items())
    for what, values in (("model", report.model), ("data", report.data)):
        for key, value in values.items():
            if key != "class_names" and value not in ("", None):
                name = key.removeprefix("n_").removeprefix("is_").replace("_", " ")
                known.append((f"{what}: {name}", _fact(value)))
    return known


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return number(value)
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def unknowns(report: Report) -> list[str]:
    """What this audit does not say, for readers who decide."""
    text = [
        "Samples counted as not broken are not proven safe. Other attacks, more steps or more "
        "restarts may break some of them.",
        "Only the changes named above were considered. Other changes (larger ones, rotations, "
        "weather, other lighting, new kinds of input) were not tried.",
        "The interval speaks for inputs drawn like these samples. For inputs of another kind the "
        "figures can be quite different.",
    ]
    if report.plan.goal.is_targeted:
        text.append(
            f"The attacker wanted {report.plan.goal.describe()}. Other wrong answers were not "
            "counted; an attacker content with any wrong answer would break more samples."
        )
    if report.access is not Access.GRADIENTS:
        text.append(
            f"The attacker saw {report.access} only. One who knows the model's weights "
            "would break more samples."
        )
    if report.model.get("is_random"):
        text.append(
            "The model answers at random: the same input can get different answers. A sample "
            "counts as broken if the majority of fresh answers is wrong."
        )
    return text + unique_skips(report)


def headlines(report: Report) -> list[Finding]:
    """The findings to show beside the result."""
    return [finding for finding in report.warnings if finding.code not in ASIDE]


def unique_skips(report: Report) -> list[str]:
    """Attacks of the plan that could not work, each once."""
    return list(dict.fromkeys(s for r in report.threats.values() for s in r.skipped))
