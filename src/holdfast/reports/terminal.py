"""The report on a terminal: the answer in plain words, then the figures behind it."""

from __future__ import annotations

import io

from rich.console import Console, ConsoleRenderable, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holdfast.reports import _trust_words, _words
from holdfast.reports.report import Report
from holdfast.reports.results import ThreatResult

SUFFIXES = (".txt",)
_WIDTH = 100
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_MAX_WARNINGS = 8


def render(report: Report) -> str:
    """The summary as text without colours."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    console.print(summary(report))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def summary(report: Report) -> ConsoleRenderable:
    """The summary for a rich console."""
    first, *others = _words.lead(report)
    parts: list[ConsoleRenderable] = [
        Text(f"{report.model.get('description', 'model')} on {_data(report)}", style="dim"),
        Padding(Text(first, style="bold"), (1, 0, 0, 0)),
        *(Text(sentence) for sentence in others),
        *_trust(report),
    ]
    if report.clean_accuracy.n:
        parts.append(Padding(_figures(report), (1, 0, 0, 0)))
        parts += [
            Padding(_cascade(report, result), (1, 0, 0, 0))
            for result in report.threats.values()
            if result.is_attacked
        ]
    if _words.headlines(report):
        parts.append(Padding(_warnings(report), (1, 0, 0, 0)))
    return Group(*parts)


_TRUST_STYLES = {"trusted": "green", "lowered": "bold red", "open": "bold red"}


def _trust(report: Report) -> list[ConsoleRenderable]:
    """Whether to trust each number."""
    lines: list[ConsoleRenderable] = []
    for result in report.threats.values():
        text = _trust_words.headline(report, result)
        where = f"{result.threat}: " if len(report.threats) > 1 else ""
        if text:
            style = _TRUST_STYLES.get(result.trust.confidence, "yellow")
            lines.append(Padding(Text(where + text, style=style), (1, 0, 0, 0)))
    return lines


def _data(report: Report) -> str:
    seen, total = len(report.samples), report.n_samples
    counted = f"{_words.number(total)} samples"
    if seen < total:
        counted = f"{_words.number(seen)} of {counted}"
    return f"{report.data.get('description', 'data')} ({counted})"


def _figures(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("", "left"), ("accuracy", "right"), ("95% interval", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("half fall to", justify="right")
    table.add_column("passes/sample", justify="right")
    clean = report.clean_accuracy
    table.add_row("unchanged", _words.percent(clean.value), _words.interval(clean), "", "")
    for result in report.threats.values():
        table.add_row(*_row(result))
        if result.verified_accuracy.k:
            proven = result.verified_accuracy
            row = ("  with a proof", f"≥ {_words.percent(proven.value)}", _words.interval(proven))
            table.add_row(*row, "", "")
    if len(report.threats) > 1:
        rate = report.robust_accuracy
        row = ("all threats together", f"≤ {_words.percent(rate.value)}", _words.interval(rate))
        table.add_row(*row, style="bold")
    return table


def _row(result: ThreatResult) -> tuple[str, ...]:
    if not result.is_attacked:
        return f"under {result.threat}", "not tested", "", "", ""
    rate = result.robust_accuracy
    bound, radius = f"≤ {_words.percent(rate.value)}", result.median_radius
    half = _words.change_size(result, radius)
    half = f"> {_words.change_size(result, result.eps)}" if radius is None else half
    passes = _words.number(result.passes_per_sample)
    return f"under {result.threat}", bound, _words.interval(rate), half, passes


def _cascade(report: Report, result: ThreatResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"attacks ({result.threat})" if len(report.threats) > 1 else "attacks")
    for name in ("tried on", "broke", "accuracy left"):
        table.add_column(name, justify="right")
    for stage in result.stages:
        left = _words.percent(stage.robust_accuracy.value)
        counts = (_words.number(stage.n_entered), _words.number(stage.n_broken))
        table.add_row(stage.attack, *counts, left)
    return table


def _warnings(report: Report) -> ConsoleRenderable:
    lines, findings = [], _words.headlines(report)
    for finding in findings[:_MAX_WARNINGS]:
        where = f" ({finding.threat})" if finding.threat and len(report.threats) > 1 else ""
        label = Text(f"{finding.level}{where}: ", style=_STYLES[finding.level])
        lines.append(label.append(finding.text, style="none"))
    if len(findings) > _MAX_WARNINGS:
        lines.append(Text(f"and {len(findings) - _MAX_WARNINGS} more in the full report"))
    return Group(*lines)
