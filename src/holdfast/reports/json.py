"""The report as JSON: everything it holds, the rates that follow, and RobustBench's field names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from holdfast.engine.judge import N_DRAWS
from holdfast.errors import JournalError
from holdfast.evaluation.statistics import Rate
from holdfast.plan import explain
from holdfast.reports import _trust_words
from holdfast.reports._trust import Confidence
from holdfast.reports.report import Report
from holdfast.reports.results import ClassResult, ThreatResult

SUFFIXES = (".json",)
FORMAT = "holdfast.report"
VERSION = 1


def render(report: Report) -> str:
    """The report as JSON text; :func:`load` reads it back.

    ``report`` holds the facts and is all that :func:`load` reads. ``summary`` and ``robustbench``
    follow from it, for those who want a number without this package.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "summary": _summary(report),
        "robustbench": {name: _robustbench(report, name) for name in report.threats},
        "report": report.model_dump(mode="json"),
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def load(text: str, name: str = "the report") -> Report:
    """The report that :func:`render` wrote.

    Raises:
        JournalError: where the text is no such report, or of a newer version.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise JournalError(f"{name} is not JSON: {error}.") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise JournalError(f"{name} is not a report: its 'format' is not {FORMAT!r}.")
    if document.get("version") != VERSION:
        raise JournalError(
            f"{name} has version {document.get('version')}; this Holdfast reads {VERSION}. "
            "Read it with the Holdfast that wrote it, or a newer one."
        )
    try:
        return Report.model_validate(document.get("report"))
    except ValidationError as error:
        raise JournalError(f"{name} is damaged:\n{explain(error)}") from None


def read(path: Path) -> Report:
    """The report in a JSON file.

    Raises:
        JournalError: where there is none.
    """
    try:
        return load(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise JournalError(
            f"There is no report in {path}: {why}. Give a run's directory, or a saved .json."
        ) from None


def _summary(report: Report) -> dict[str, Any]:
    return {
        "clean_accuracy": report.clean_accuracy.to_dict(),
        "robust_accuracy": report.robust_accuracy.to_dict(),
        "verified_accuracy": report.verified_accuracy.to_dict(),
        "n_samples": report.n_samples,
        "n_unfinished": report.n_unfinished,
        "classes": [_class(report, c) for c in report.classes],
        "threats": {name: _threat(report, result) for name, result in report.threats.items()},
        "passes": [
            {"threat": p.threat, "phase": p.name, "forward": p.forward, "backward": p.backward}
            for p in report.phases
        ],
    }


def _threat(report: Report, result: ThreatResult) -> dict[str, Any]:
    curve = result.curve
    return {
        "robust_accuracy": result.robust_accuracy.to_dict(),
        "verified_accuracy": result.verified_accuracy.to_dict(),
        "attack_success_rate": result.attack_success_rate.to_dict(),
        "is_attacked": result.is_attacked,
        "n_unfinished": result.n_unfinished,
        "trust": _trust(report, result),
        "median_radius": result.median_radius,
        "passes_per_sample": result.passes_per_sample,
        "stages": [
            {"attack": s.attack, "robust_accuracy": s.robust_accuracy.to_dict()}
            for s in result.stages
        ],
        "classes": [_class(report, c) for c in result.classes],
        "curve": {
            "note": "upper bound on accuracy; accuracy[i] holds from eps[i] to the next",
            "eps": curve.eps.tolist(),
            "accuracy": curve.accuracy.tolist(),
            "lower": curve.lower.tolist(),
            "upper": curve.upper.tolist(),
        },
    }


def _trust(report: Report, result: ThreatResult) -> dict[str, Any]:
    trust = result.trust
    return {
        "verdict": trust.confidence.value,
        "text": _trust_words.headline(report, result),
        "first_number": trust.first.to_dict() if trust.first else None,
        "because": [s.model_dump(mode="json") for s in trust.reasons],
        "lowered": [
            {"attack": s.attack, "before": s.before, "after": s.after, "is_added": s.is_added}
            for s in trust.lowered
        ],
        "checks": [name for look in result.looks for name in look.checks],
        "passes": trust.n_passes,
    }


def _class(report: Report, result: ClassResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "name": report.class_name(result.label),
        "clean_accuracy": result.clean_accuracy.to_dict(),
        "robust_accuracy": result.robust_accuracy.to_dict(),
    }


def _robustbench(report: Report, name: str) -> dict[str, Any]:
    """The fields of RobustBench's model cards; accuracies are percentages written as text."""
    result = report.threats[name]
    draws = N_DRAWS if report.model.get("is_random") else 1
    doubtful = result.trust.confidence in (Confidence.OPEN, Confidence.LOWERED)
    unreliable = [w.code for w in report.warnings if w.level != "info" and w.threat in ("", name)]
    attacks = ", ".join(stage.attack for stage in result.stages if stage.n_entered)
    return {
        "name": report.model.get("description", ""),
        "dataset": report.data.get("description", ""),
        "threat_model": {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}.get(result.norm),
        "eps": name.partition(":")[2],
        "clean_acc": _percentage(report.clean_accuracy),
        "autoattack_acc": _percentage(result.robust_accuracy) if result.is_attacked else None,
        "external": None,
        "architecture": report.model.get("description", ""),
        "additional_data": None,
        "unreliable": bool(unreliable) or doubtful or not result.is_attacked,
        "number_forward_passes": draws,
        "footnote": (
            f"autoattack_acc is the robust accuracy after Holdfast's cascade ({attacks or 'none'})"
            f" on {result.n} samples, not that of the AutoAttack package."
            + (f" Warnings: {', '.join(unreliable)}." if unreliable else "")
        ),
    }


def _percentage(rate: Rate) -> str | None:
    return f"{100 * rate.value:.2f}" if rate.n else None
