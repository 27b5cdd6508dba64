"""Which charts a threat gets, and what each of them means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from holdfast.record import Verdict
from holdfast.reports import _charts, _words
from holdfast.reports.report import Report
from holdfast.reports.results import ThreatResult

_TAIL = 99.0  # percentile of the losses that the axis reaches; the rest is in the last bar


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, its heading and what to read from it."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """Values of the samples that were right and attacked."""

    confidence: NDArray[np.float64]
    attacked_confidence: NDArray[np.float64]
    loss: NDArray[np.float64]
    attacked_loss: NDArray[np.float64]


def of(report: Report, result: ThreatResult) -> Iterator[Figure]:
    """The charts of one threat; none where nothing was attacked."""
    if not result.is_attacked:
        return
    if result.eps != 0:
        yield _curve(result)
    columns = _columns(report, result)
    if report.has_scores and len(columns.confidence):
        yield _confidence(result.threat, columns)
        yield _drop(result.threat, columns)
        yield _loss(result.threat, columns)


def _curve(result: ThreatResult) -> Figure:
    found = result.curve
    half = result.median_radius
    middle = (
        "Half of the samples that are right unchanged fall to changes of "
        f"{_words.change_size(result, half)}."
        if half is not None
        else "Fewer than half of the samples that are right unchanged fall to changes this large."
    )
    alt = (
        f"Falling steps under {result.threat}: {_words.percent(float(found.accuracy[0]))} of "
        "samples right without a change, at most "
        f"{_words.percent(float(found.accuracy[-1]))} with changes of up to "
        f"{_words.change_size(result, float(found.eps[-1]))}. {middle}"
    )
    factor, suffix = _words.unit(result)
    scaled = replace(found, eps=factor * found.eps)
    svg = _charts.curve(
        scaled, f"size of the change ({result.norm}{suffix and ', n' + suffix})", alt
    )
    note = (
        f"An upper bound at every size: the truth lies on the line or below it. {middle} The "
        "shaded band is the exact 95% interval, size by size."
    )
    return Figure("Accuracy against the size of the change", svg, note)


def _columns(report: Report, result: ThreatResult) -> _Columns:
    rows = [
        i
        for i, verdict in enumerate(result.verdict)
        if verdict is not Verdict.WRONG and result.confidence[i] is not None
    ]
    samples = report.samples
    pick = [
        np.asarray([column[i] for i in rows], dtype=float)
        for column in (samples.confidence, result.confidence, samples.loss, result.loss)
    ]
    return _Columns(*pick)


def _confidence(threat: str, columns: _Columns) -> Figure:
    series = [
        _charts.Series("unchanged", columns.confidence),
        _charts.Series("under attack", columns.attacked_confidence),
    ]
    before, after = np.median(columns.confidence), np.median(columns.attacked_confidence)
    alt = (
        f"Two histograms under {threat}. Median confidence in the right answer: "
        f"{_words.percent(float(before))} unchanged, {_words.percent(float(after))} under attack."
    )
    svg = _charts.histogram(series, (0, 1), "confidence in the right answer", alt)
    note = (
        f"Median {_words.percent(float(before))} unchanged, {_words.percent(float(after))} under "
        "attack. Attacks stop at their first success, so broken samples could fall further."
    )
    return Figure("Confidence in the right answer", svg, note)


def _drop(threat: str, columns: _Columns) -> Figure:
    drop = columns.confidence - columns.attacked_confidence
    series = [_charts.Series("samples", drop)]
    low, middle = min(0.0, float(drop.min())), float(np.median(drop))
    alt = f"A histogram of the drop in confidence under {threat}; median {_words.size(middle)}."
    svg = _charts.histogram(series, (low, 1.0), "drop in confidence", alt)
    note = (
        f"How much confidence in the right answer the worst change found takes away: median "
        f"{_words.size(middle)}. Near 0 the sample hardly reacts."
    )
    return Figure("Robustness margin", svg, note)


def _loss(threat: str, columns: _Columns) -> Figure:
    series = [
        _charts.Series("unchanged", columns.loss),
        _charts.Series("under attack", columns.attacked_loss),
    ]
    finite = columns.attacked_loss[np.isfinite(columns.attacked_loss)]
    top = float(np.percentile(finite, _TAIL)) if len(finite) else 1.0
    mean = float(finite.mean()) if len(finite) else float("nan")
    alt = (
        f"Two histograms of the loss under {threat}. Mean "
        f"{_words.size(float(columns.loss.mean()))} unchanged, {_words.size(mean)} under attack."
    )
    svg = _charts.histogram(series, (0, max(top, 1e-3)), "loss (cross-entropy)", alt)
    note = (
        f"Mean adversarial loss {_words.size(mean)}, {_words.size(float(columns.loss.mean()))} "
        "unchanged. The last bar holds all larger values."
    )
    return Figure("Adversarial loss", svg, note)
