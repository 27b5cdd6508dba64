"""``holdfast demo``: a first audit, with nothing but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.audit import run_audit


def demo(
    out: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("holdfast-demo"),
) -> None:
    """Train a small network on handwritten digits and audit it, in about a minute.

    The report is written to report.html in the current directory.
    """
    from holdfast.demo import prepare

    typer.echo("Training a small network on scikit-learn's handwritten digits ...")
    plan, accuracy, seconds = prepare(out)
    typer.echo(f"It reads {accuracy:.1%} of the digits it has not seen ({seconds:.1f} s).\n")
    run_audit(plan, out)
    page = (out / "report.html").read_bytes()
    Path("report.html").write_bytes(page)
    typer.echo("Open report.html in a browser. Run it again:  holdfast audit " + f"{out}/plan.toml")
