"""The report as one HTML page: the answer in plain words first, then what a reviewer checks.

The page needs no network, no scripts and no fonts of its own; it prints, follows light and dark
mode, and says everything in words that it says in colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from holdfast.record import Verdict
from holdfast.reports import _pictures, _trust_words, _words
from holdfast.reports.artefacts import Example
from holdfast.reports.report import Report
from holdfast.reports.results import ClassResult, ThreatResult, weakness

if TYPE_CHECKING:
    from holdfast.reports._figures import Figure

SUFFIXES = (".html", ".htm")
_MAX_EXAMPLES = 24
_N_FIRST = 6  # of them in sight; the others are folded away
_MAX_LARGE = 8  # pictures of more than _LARGE pixels a side would make the page heavy
_LARGE = 64
_MAX_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the headline bar; ``start`` and ``width`` in percent of the bar."""

    verdict: str
    name: str
    meaning: str
    n: int
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A broken sample as the page shows it."""

    example: Example
    before: str
    after: str
    before_confidence: float
    after_confidence: float
    radius: float | None
    size: float | None
    pictures: _pictures.Triple | None
    features: list[_pictures.FeatureChange]


@dataclass(frozen=True, slots=True)
class Classes:
    """Results per class, the most surely weak first; ``n_more`` are left out."""

    rows: tuple[ClassResult, ...]
    n_more: int


@dataclass(frozen=True, slots=True)
class Section:
    """All that the page says of one threat."""

    result: ThreatResult
    segments: list[Segment]
    charts: list[Figure]
    trust: str
    checks: list[_trust_words.Row]
    shown: list[Shown]
    classes: Classes


def render(report: Report) -> str:
    """The page."""
    sections = [_section(report, result) for result in report.threats.values()]
    page = environment().get_template("report.html")
    return page.render(
        report=report,
        sections=sections,
        segments=_segments(report.verdicts),
        lead=_words.lead(report),
        unknowns=[*_words.unknowns(report), *_trust_words.unchecked(report)],
        verdict_words=_words.VERDICTS.values(),
        facts=_words.facts(report),
        n_first=_N_FIRST,
    )


def fragment(report: Report) -> str:
    """A short summary for a notebook's cell."""
    page = environment().get_template("fragment.html")
    trust = [_trust_words.headline(report, result) for result in report.threats.values()]
    return page.render(
        report=report,
        segments=_segments(report.verdicts),
        lead=_words.lead(report),
        trust=[sentence for sentence in trust if sentence],
    )


@cache
def environment() -> Environment:
    """Where templates come from, and their filters."""
    found = Environment(
        loader=PackageLoader("holdfast.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_words.number, _words.percent, _words.interval, _words.size)
    found.filters.update({function.__name__: function for function in filters})
    found.globals["words"] = _words
    found.globals["trust_words"] = _trust_words
    return found


def _section(report: Report, result: ThreatResult) -> Section:
    from holdfast.reports import _figures

    charts = list(_figures.of(report, result))
    return Section(
        result,
        _segments(result.verdict),
        charts,
        _trust_words.headline(report, result),
        _trust_words.rows(result.looks),
        _shown(report, result),
        _classes(result),
    )


def _segments(verdicts: tuple[Verdict, ...]) -> list[Segment]:
    """The bar's parts from proven to wrong; those that do not occur are left out."""
    parts, start = [], 0.0
    for verdict, (name, meaning) in _words.VERDICTS.items():
        n = verdicts.count(verdict)
        width = 100 * n / max(len(verdicts), 1)
        if n:
            parts.append(Segment(verdict.value, name, meaning, n, start, width))
        start += width
    return parts


def _classes(result: ThreatResult) -> Classes:
    order = sorted(result.classes, key=weakness)
    return Classes(tuple(order[:_MAX_CLASSES]), max(0, len(order) - _MAX_CLASSES))


def _shown(report: Report, result: ThreatResult) -> list[Shown]:
    side = max(report.data.get("shape") or (0,))
    n = _MAX_LARGE if side > _LARGE else _MAX_EXAMPLES
    return [_show(report, result, example) for example in report.examples(result.threat)[:n]]


def _show(report: Report, result: ThreatResult, example: Example) -> Shown:
    row, samples = example.row, report.samples
    x = np.asarray(example.x.float())
    x_adv = np.asarray(example.x_adv.float())
    pictures = _pictures.triple(x, x_adv, _words.bounds(report))
    return Shown(
        example,
        report.class_name(samples.prediction[row]),
        report.class_name(result.prediction[row]),
        samples.confidence_predicted[row],
        result.prediction_confidence[row],
        result.radius[row],
        _size(x_adv - x, result.norm),
        pictures,
        [] if pictures else _pictures.most_changed(x, x_adv),
    )


def _size(delta: np.ndarray, norm: str) -> float | None:
    """The size of the change shown; None where the threat is no norm ball."""
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}.get(norm)
    return None if order is None else float(np.linalg.norm(delta.ravel().astype(float), order))
