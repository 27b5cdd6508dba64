"""The events of a hardening as a person or a program wants to see them."""

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

from holdfast.cli.display import duration
from holdfast.events import Event, Found, PhaseDone, Progress, Started
from holdfast.hardening.events import Chosen, RolledBack, Training, Validated

Show = Callable[[Event], None]
_BAR = 30
_ROUNDS_SHOWN = 12


@contextmanager
def display(as_json: bool) -> Iterator[Show]:
    """A function that shows events: JSON lines, a live table, or a line per validation."""
    if as_json:
        out = sys.stdout
        with redirect_stdout(sys.stderr):  # whatever the user's own code prints

            def write(event: Event) -> None:
                out.write(json.dumps(event.to_dict()) + "\n")
                out.flush()

            yield write
        return
    console = Console()
    if not console.is_terminal:
        yield lambda event: _print(event, console)
        return
    state = _State()
    with Live(state, console=console, refresh_per_second=4, transient=False) as live:
        yield lambda event: state.take(event, live.console)


def _print(event: Event, console: Console) -> None:
    text = line(event)
    if text is not None:
        console.print(text, soft_wrap=True, highlight=False)
        console.file.flush()


def line(event: Event) -> Text | None:
    """One line for everything but progress."""
    if isinstance(event, Chosen):
        return _plan(event)
    if isinstance(event, Validated):
        return Text(
            f"{duration(event.seconds)}  epoch {event.epoch:.1f}: loss {event.loss:.3f}, "
            f"validation {event.clean_accuracy:.1%}, under attack {event.robust_accuracy:.1%}"
            + _proven(event)
            + (", the best so far" if event.is_best else "")
        )
    if isinstance(event, RolledBack):
        return Text.assemble(
            ("Alarm: ", "bold yellow"),
            f"{event.text} Back to the last good weights, on with {event.recipe}.",
        )
    if isinstance(event, Found):
        return Text.assemble((f"{event.level.capitalize()}: ", "yellow"), event.text)
    if isinstance(event, PhaseDone) and event.robust_accuracy is not None:
        return Text(f"audit, {event.phase}: robust {event.robust_accuracy:.1%}")
    return None


def _proven(event: Validated) -> str:
    return "" if event.verified_accuracy is None else f", proven {event.verified_accuracy:.1%}"


def _plan(event: Chosen) -> Text:
    samples = f"{event.n_train} samples to train on, {event.n_validation} to validate"
    resumed = f"\n  Going on after {event.n_updates_done} updates." if event.n_updates_done else ""
    why = "".join(f"\n  {reason}" for reason in event.reasons)
    return Text(f"{event.recipe} ({samples}) -> {event.directory}{why}{resumed}")


@dataclass
class _State:
    """What the live table shows."""

    plan: Chosen | None = None
    rounds: list[Validated] = field(default_factory=list)
    now: Training | None = None
    audit: str = ""

    def take(self, event: Event, console: Console) -> None:
        if isinstance(event, Chosen):
            self.plan, self.audit = event, ""
        elif isinstance(event, Validated):
            self.rounds = [*self.rounds, event][-_ROUNDS_SHOWN:]
        elif isinstance(event, Training):
            self.now = event
        elif isinstance(event, Started):
            self.audit, self.now = f"Auditing {event.n_samples} samples ...", None
        elif isinstance(event, (Progress, PhaseDone)):
            robust = event.robust_accuracy
            so_far = "" if robust is None else f", robust so far {robust:.1%}"
            self.audit = f"Auditing: {event.phase}{so_far}"
        elif (text := line(event)) is not None:
            console.print(text, soft_wrap=True, highlight=False)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [_plan(self.plan)] if self.plan else []
        if self.rounds:
            parts.append(_table(self.rounds))
        if self.now is not None:
            parts += [_bar(self.now), _numbers(self.now)]
        if self.audit:
            parts.append(Text(self.audit))
        return Group(*(parts or [Text("Loading ...")]))


def _table(rounds: list[Validated]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    has_proofs = any(r.verified_accuracy is not None for r in rounds)
    proven = ("proven",) if has_proofs else ()
    for column in ("epoch", "loss", "clean", "under attack", *proven, "", "time"):
        table.add_column(column, justify="right")
    for r in rounds:
        table.add_row(
            f"{r.epoch:.1f}",
            f"{r.loss:.3f}",
            f"{r.clean_accuracy:.1%}",
            f"{r.robust_accuracy:.1%}",
            *((f"{r.verified_accuracy or 0:.1%}",) if has_proofs else ()),
            Text("best", style="green") if r.is_best else "",
            duration(r.seconds),
        )
    return table


def _bar(now: Training) -> Table:
    bar = Table.grid(padding=(0, 1))
    left = f"{duration(now.seconds_left)} left" if now.seconds_left < float("inf") else ""
    bar.add_row(ProgressBar(total=1.0, completed=now.progress, width=_BAR), left)
    return bar


def _numbers(now: Training) -> Text:
    known = (("clean", now.clean_accuracy), ("under attack", now.robust_accuracy))
    said = [f"{name} {value:.1%}" for name, value in known if value is not None]
    parts = [f"epoch {now.epoch:.1f}", f"loss {now.loss:.3f}", *said]
    return Text("   ".join([*parts, f"radius {now.ramp:.0%}", f"rate {now.learning_rate:.2g}"]))
