"""``holdfast frontier``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.harden import (
    AuditOption,
    DataOption,
    EpochsOption,
    ExtraOption,
    Model,
    RecipeOption,
    ScratchOption,
    SetOption,
    TestOption,
    ThreatOption,
    ValidationOption,
    ask,
)

EXAMPLES = """Examples:

  holdfast frontier model.pt2 --data train/ --threat linf:8/255 --budget 3h --test test/

  holdfast frontier model.pt2 --data train/ --threat l2:0.5 --recipe trades --vary beta=0.5..12
      --points 8 --budget 4h

  holdfast frontier zoo:net --data train.npz --threat linf:0.1 --recipe trades --vary beta=1,3,6
      --vary epochs=5,15"""

_VARIED = "What to vary"

VaryOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A list (beta=1,3,6), a range (beta=0.5..12) or recipes (recipe=pgd_training|mart). "
        "Names: recipe, budget, epochs, an option of the recipe, a setting. Four recipes if not "
        "given.",
        metavar="NAME=VALUES",
        rich_help_panel=_VARIED,
    ),
]
PointsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Hardenings in all: every combination of lists, or 6, if not given.",
        metavar="N",
        rich_help_panel=_VARIED,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time for the training of all points together: 3h. Audits come on top.",
        metavar="TIME",
        rich_help_panel="How",
    ),
]


def frontier(
    model: Model,
    data: DataOption,
    threat: ThreatOption,
    vary: VaryOption = None,
    points: PointsOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    extra: ExtraOption = None,
    label: options.LabelOption = None,
    n: options.NumberOption = None,
    weights: options.WeightsOption = None,
    domain: options.DomainOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    budget: BudgetOption = None,
    epochs: EpochsOption = None,
    recipe: RecipeOption = "auto",
    from_scratch: ScratchOption = False,
    setting: SetOption = None,
    audit_n: AuditOption = None,
    seed: options.SeedOption = None,
    device: options.DeviceOption = None,
    out: Annotated[
        Path, typer.Option("--out", help="Where everything goes.", metavar="DIR")
    ] = Path("holdfast-frontier"),
    as_json: options.JsonOption = False,
) -> None:
    """Show what robustness costs: several hardenings, and which of them are worth choosing from.

    Interrupted or killed, the same command goes on where it stopped. At the end stands a page
    (frontier.html) with the picture; every point's own card and model lie in its directory.
    """
    given = {**locals(), "group": None}
    _run(given, as_json)


def _run(given: dict[str, Any], as_json: bool) -> None:
    from holdfast.cli.errors import INTERRUPTED, show_error
    from holdfast.cli.harden_display import display
    from holdfast.hardening.dials import parse_dial
    from holdfast.hardening.frontier import run_frontier
    from holdfast.hardening.harden import listen

    dials = [parse_dial(text) for text in given["vary"] or ()]
    varied = {dial.name for dial in dials}
    asked = ask(given | _stand_ins(given, varied))
    try:
        with display(as_json) as show:
            found = listen(run_frontier(asked, dials, given["points"], given["out"]), show)
    except KeyboardInterrupt:
        show_error("Interrupted. Give the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(f"{found}\n\nThe page: {given['out'] / 'frontier.html'}")


def _stand_ins(given: dict[str, Any], varied: set[str]) -> dict[str, Any]:
    """A bound for the checks, where the bound itself is varied."""
    is_bounded = given["budget"] is not None or given["epochs"] is not None
    return {"epochs": 1.0} if varied & {"budget", "epochs"} and not is_bounded else {}
