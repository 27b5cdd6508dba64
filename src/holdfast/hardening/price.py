"""What hardening took away: accuracy per class, group and corruption, and calibration.

Hardening regresses silently: the mean hides that one class paid for all. Both audits are of the
same samples, so every comparison is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from holdfast.evaluation.statistics import Rate, paired
from holdfast.hardening.card import Accuracy, Side, Worse
from holdfast.reports.report import Report

_BINS = 15
_SURE = 0.05
_LEAST = 0.005  # differences below half a point are not listed


Answers = Mapping[str, Sequence[bool]]


def side(report: Report, corrupted: Answers | None = None) -> Side:
    """The numbers of one audit, and the accuracies under corruptions."""
    results = report.threats
    has_proofs = any(r.verified_accuracy.k for r in results.values())
    return Side(
        clean=_accuracy(report.clean_accuracy),
        robust={name: _accuracy(r.robust_accuracy) for name, r in results.items()},
        verified={n: _accuracy(r.verified_accuracy) for n, r in results.items() if has_proofs},
        calibration_error=calibration_error(report),
        corrupted={name: sum(right) / len(right) for name, right in (corrupted or {}).items()},
        n_unfinished=report.n_unfinished,
    )


def _accuracy(rate: Rate) -> Accuracy:
    return Accuracy(value=rate.value, lower=rate.lower, upper=rate.upper, n=rate.n)


def calibration_error(report: Report) -> float:
    """Mean gap between confidence and accuracy, over bins of confidence (Guo et al., 2017)."""
    confidence = np.asarray(report.samples.confidence_predicted, dtype=float)
    is_right = np.asarray(report.samples.is_correct, dtype=float)
    if not len(confidence):
        return 0.0
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    gaps = np.bincount(place, weights=is_right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / max(1, counts.sum()))


def worse(
    before: Report,
    after: Report,
    groups: Sequence[object] | None = None,
    corrupted: tuple[Answers, Answers] = ({}, {}),
) -> list[Worse]:
    """What is worse after than before, the largest loss first.

    Args:
        before: Audit of the model as it came.
        after: Audit of the hardened model on the same samples.
        groups: A value per audited sample, e.g. a column of the table, to compare within.
        corrupted: Whether each sample is right under each corruption, before and after.
    """
    n = min(len(before.samples), len(after.samples))
    right = [np.asarray(r.samples.is_correct)[:n] for r in (before, after)]
    found = [_compared("clean accuracy", right[0], right[1])]
    y = np.asarray(before.samples.y)[:n]
    for label in np.unique(y):
        own = y == label
        name = f"clean accuracy of class {after.class_name(int(label))}"
        found.append(_compared(name, right[0][own], right[1][own]))
    if groups is not None:
        values = np.asarray([str(g) for g in groups])[:n]
        for value in np.unique(values):
            own = values == value
            found.append(
                _compared(f"clean accuracy of group {value}", right[0][own], right[1][own])
            )
    for name, first in corrupted[0].items():
        rights = [np.asarray(answers, dtype=bool) for answers in (first, corrupted[1][name])]
        found.append(_compared(f"accuracy under corruption by {name}", *rights))
    errors = [calibration_error(r) for r in (before, after)]
    listed = [w for w in found if w.before - w.after > _LEAST]
    listed.sort(key=lambda w: w.after - w.before)
    if errors[1] > errors[0] + _LEAST:
        listed.append(
            Worse(what="calibration error", before=errors[0], after=errors[1], n=n, is_sure=None)
        )
    return listed


def _compared(what: str, before: np.ndarray, after: np.ndarray) -> Worse:
    result = paired(before.tolist(), after.tolist())
    n = max(1, len(before))
    return Worse(
        what=what,
        before=float(before.sum()) / n,
        after=float(after.sum()) / n,
        n=len(before),
        is_sure=result.p_value < _SURE,
    )
