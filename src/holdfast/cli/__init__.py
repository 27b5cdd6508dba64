"""The command line: options become a plan, a plan becomes events, events are shown."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.audit import EXAMPLES, audit
from holdfast.cli.check import check
from holdfast.cli.demo import demo
from holdfast.cli.distances import EXAMPLES as DISTANCES_EXAMPLES
from holdfast.cli.distances import distances
from holdfast.cli.errors import explained
from holdfast.cli.frontier import EXAMPLES as FRONTIER_EXAMPLES
from holdfast.cli.frontier import frontier
from holdfast.cli.harden import EXAMPLES as HARDEN_EXAMPLES
from holdfast.cli.harden import harden
from holdfast.cli.listing import listing
from holdfast.cli.report import report
from holdfast.cli.verify import EXAMPLES as VERIFY_EXAMPLES
from holdfast.cli.verify import verify

app = typer.Typer(
    name="holdfast",
    help="Can an attacker change your model's answer? Audit it and see.",
    epilog="First steps: [bold]holdfast demo[/bold] shows an audit of a small network in a minute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit", epilog=EXAMPLES, no_args_is_help=True)(explained(audit))
app.command("distances", epilog=DISTANCES_EXAMPLES, no_args_is_help=True)(explained(distances))
app.command("verify", epilog=VERIFY_EXAMPLES, no_args_is_help=True)(explained(verify))
app.command("harden", epilog=HARDEN_EXAMPLES, no_args_is_help=True)(explained(harden))
app.command("frontier", epilog=FRONTIER_EXAMPLES, no_args_is_help=True)(explained(frontier))
app.command("check")(explained(check))
app.command("report")(explained(report))
app.command("list")(explained(listing))
app.command("demo")(explained(demo))


def _version(wanted: bool) -> None:
    if wanted:
        from holdfast._version import __version__

        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
