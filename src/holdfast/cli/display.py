"""Events as a person or a program wants to see them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from holdfast.events import Event, Finished, Found, PhaseDone, Progress, Started, Stopped

Show = Callable[[Event], None]

_MINUTE_S = 60
_HOUR_S = 3600
_BAR = 24
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_COLUMNS = ("threat", "phase", "samples", "unchanged", "robust so far", "passes", "time")


@contextmanager
def display(as_json: bool) -> Iterator[Show]:
    """A function that shows events: JSON lines, a live table, or a line per phase."""
    if as_json:
        out = sys.stdout
        with redirect_stdout(sys.stderr):  # whatever the user's own code prints
            yield lambda event: _write_json(event, out.write, out.flush)
        return
    console = Console()
    if not console.is_terminal:
        yield lambda event: _write_line(event, console)
        return
    state = _State()
    with Live(state, console=console, refresh_per_second=4, transient=False) as live:
        yield lambda event: state.take(event, live.console)


def _write_json(event: Event, write: Callable[[str], object], flush: Callable[[], object]) -> None:
    write(json.dumps(event.to_dict()) + "\n")
    flush()


def _write_line(event: Event, console: Console) -> None:
    text = _line(event)
    if text is not None:
        console.print(text, soft_wrap=True, highlight=False)
        console.file.flush()


def _line(event: Event) -> Text | None:
    """One line for everything but progress."""
    if isinstance(event, Started):
        resumed = f", {event.n_resumed} jobs already done" if event.n_resumed else ""
        threats = ", ".join(event.threats)
        return Text(f"{event.n_samples} samples under {threats}{resumed} -> {event.directory}")
    if isinstance(event, Found):
        return _finding(event)
    if isinstance(event, PhaseDone):
        where = " ".join(part for part in (event.threat, event.phase) if part)
        known = (("unchanged", event.clean_accuracy), ("robust", event.robust_accuracy))
        parts = [f"{name} {value:.1%}" for name, value in known if value is not None]
        parts.append(f"{event.passes_per_sample:.1f} passes per sample")
        return Text(f"{duration(event.seconds)}  {where}: {', '.join(parts)}")
    if isinstance(event, Stopped):
        return Text(_stopped(event), style="yellow")
    if isinstance(event, Finished):
        return Text(f"{duration(event.seconds)}  in all")
    return None


def _finding(event: Found) -> Text:
    style = _STYLES.get(event.level, "")
    return Text.assemble((f"{event.level.capitalize()}: ", style), event.text)


def _stopped(event: Stopped) -> str:
    why = {"budget": "the budget is used up", "interrupted": "it was interrupted"}
    unfinished = f"{event.n_unfinished} samples are not finished"
    return f"Stopped because {why.get(event.reason, event.reason)}; {unfinished}."


@dataclass
class _State:
    """What the live table shows: finished phases, and the one at work."""

    started: Started | None = None
    done: list[PhaseDone] = field(default_factory=list)
    now: Progress | None = None

    def take(self, event: Event, console: Console) -> None:
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Progress):
            self.now = event
        elif isinstance(event, PhaseDone):
            self.done.append(event)
            self.now = None
        elif isinstance(event, (Found, Stopped)):
            console.print(_line(event), soft_wrap=True, highlight=False)
        elif isinstance(event, Finished):
            self.now = None

    def __rich__(self) -> RenderableType:
        if self.started is None:
            return Text("Loading ...")
        heading = _line(self.started) or Text("")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in _COLUMNS:
            left = column in ("threat", "phase", "samples")
            table.add_column(column, justify="left" if left else "right", no_wrap=not left)
        for phase in self.done:
            table.add_row(*_finished_row(phase, self.started.n_samples))
        if self.now is not None:
            table.add_row(*_running_row(self.now))
        return Group(heading, table)


def _finished_row(phase: PhaseDone, n_samples: int) -> tuple[RenderableType, ...]:
    return (
        phase.threat,
        phase.phase,
        Text("done", style="green"),
        _rate(phase.clean_accuracy),
        _rate(phase.robust_accuracy),
        f"{phase.passes_per_sample * n_samples:,.0f}",
        duration(phase.seconds),
    )


def _running_row(now: Progress) -> tuple[RenderableType, ...]:
    bar = Table.grid(padding=(0, 1))
    total = max(1, now.n_total)
    bar.add_row(ProgressBar(total=total, completed=now.n_done, width=_BAR), f"{now.n_done}/{total}")
    return (
        now.threat,
        Text(now.phase, style="bold"),
        bar,
        _rate(now.clean_accuracy),
        _rate(now.robust_accuracy),
        f"{now.passes:,}",
        duration(now.seconds),
    )


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def duration(seconds: float) -> str:
    """``7 s``, ``3:05 min``, ``1:02:03 h``."""
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(whole, _MINUTE_S)
    if whole < _HOUR_S:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // _MINUTE_S}:{minutes % _MINUTE_S:02d}:{rest:02d} h"
