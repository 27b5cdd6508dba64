"""A list of instances on the command line: a bar on a terminal, else a line for each."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli.errors import INTERRUPTED, show_error

if TYPE_CHECKING:
    from holdfast.properties.instances import Outcome

Show = Callable[["Outcome", Counter[str]], None]
_RESULTS = ("sat", "unsat", "unknown", "timeout", "error")


def run_list(
    instances: Path,
    out: Path,
    timeout_s: float | None,
    counterexamples: Path | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """Decide every instance of a list; exits with 1 where one could not be read."""
    from holdfast.properties.instances import read_instances, run_instances

    results: Counter[str] = Counter()
    seconds = 0.0
    total = len(read_instances(instances))
    try:
        with _display(as_json, total) as show:
            for outcome in run_instances(
                instances, out, timeout_s=timeout_s, counterexamples=counterexamples, **options
            ):
                results[outcome.result] += 1
                seconds += outcome.seconds
                show(outcome, results)
    except KeyboardInterrupt:
        show_error(f"Interrupted. What is done is in {out}; the same command again goes on.")
        raise typer.Exit(INTERRUPTED) from None
    summary = f"{results.total()} instances in {seconds:.1f} s: {_counts(results)}. Written: {out}"
    typer.echo(summary, err=as_json)
    if results["error"]:
        counts = f"{results['error']} of {results.total()} instances"
        show_error(f"{counts} could not be decided; {out} says why.")
        raise typer.Exit(1)


@contextmanager
def _display(as_json: bool, total: int) -> Iterator[Show]:
    """A function that shows outcomes."""
    if as_json:
        yield lambda outcome, _: _echo(json.dumps(dataclasses.asdict(outcome)))
    elif not is_terminal():
        yield lambda outcome, _: _echo(_line(outcome))
    else:
        with _bar(total) as show:
            yield show


def is_terminal() -> bool:
    """Whether somebody looks at the standard output."""
    return sys.stdout.isatty()


@contextmanager
def _bar(total: int) -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total, counts="")

        def show(outcome: Outcome, results: Counter[str]) -> None:
            if outcome.result == "error":
                progress.console.print(_line(outcome), soft_wrap=True, markup=False)
            counts = _counts(results)
            progress.update(task, advance=1, counts=counts)

        yield show


def _echo(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


def _line(outcome: Outcome) -> str:
    """``3/186  unsat  0.08 s  net.onnx  property.vnnlib``."""
    instance = outcome.instance
    parts = [
        f"{outcome.number + 1}/{outcome.n_instances}",
        outcome.result,
        f"{outcome.seconds:.2f} s",
        instance.onnx,
        instance.vnnlib,
        "(from an earlier run)" if outcome.is_resumed else "",
        outcome.reason,
    ]
    return "  ".join(part for part in parts if part)


def _counts(results: Counter[str]) -> str:
    found = [f"{results[name]} {name}" for name in _RESULTS if results[name]]
    return ", ".join(found) or "nothing to decide"
