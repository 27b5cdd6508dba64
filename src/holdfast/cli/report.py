"""``holdfast report``: the report of a finished or unfinished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's directory.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write only this file: .html, .json or .txt.", show_default=False),
    ] = None,
) -> None:
    """Write the report of a run again, also while the run goes on, and print its summary."""
    write_reports(directory, out)


def write_reports(directory: Path, out: Path | None = None, quiet: bool = False) -> None:
    """Write ``report.html`` and ``report.json`` (or ``out`` alone); print the summary."""
    from rich.console import Console

    from holdfast.reports.report import Report

    result = Report.load(directory)
    files = [out] if out is not None else [directory / "report.html", directory / "report.json"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        result.save(file)
    if quiet:
        return
    console = Console()
    console.print()
    console.print(result)
    console.print()
    for file in files:
        console.print(f"Written: {file}", soft_wrap=True, highlight=False, markup=False)
    if result.n_unfinished:
        text = f"Go on with: holdfast audit --resume {directory}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
