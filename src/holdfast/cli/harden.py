"""``holdfast harden``."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options

if TYPE_CHECKING:
    from holdfast.hardening.asking import Ask

EXAMPLES = """Examples:

  holdfast harden model.pt2 --data train/ --threat linf:8/255 --budget 45min --test test/

  holdfast harden zoo:resnet --weights best.pt --data train.npz --threat l2:0.5 --budget 2h

  holdfast harden zoo:resnet --data train.npz --threat linf:0.3 --from-scratch --epochs 30

  holdfast harden zoo:resnet --data train.npz --threat linf:0.1 --recipe "trades(beta=3)" --epochs 9

  torchrun --nproc-per-node 4 -m holdfast harden ...          several devices or processes"""

_WHAT, _HOW = "What to harden", "How"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="model.pt2 (torch.export) or package.module:function.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="To train on: a folder with one sub-folder per class, data.npz, table.csv, idx files.",
        metavar="DATA",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
ThreatOption = Annotated[
    list[str],
    typer.Option(
        "--threat",
        help="What it shall withstand: linf:8/255, l2:0.5, ... Several are possible.",
        metavar="THREAT",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option(
        help="To choose the best weights by. A tenth of --data, set apart, if not given.",
        metavar="DATA",
        rich_help_panel=_WHAT,
    ),
]
TestOption = Annotated[
    str | None,
    typer.Option(
        help="For the audits before and after; the validation samples if not given.",
        metavar="DATA",
        rich_help_panel=_WHAT,
    ),
]
ExtraOption = Annotated[
    str | None,
    typer.Option(
        help="More samples to mix in, e.g. from a generator.",
        metavar="DATA",
        rich_help_panel=_WHAT,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time for all of it, audits included: 45min, 2h.",
        metavar="TIME",
        rich_help_panel=_HOW,
    ),
]
EpochsOption = Annotated[
    float | None,
    typer.Option(
        help="Passes over the data, instead of a budget: repeatable bit for bit on a CPU.",
        metavar="N",
        rich_help_panel=_HOW,
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        help="auto measures and chooses; or a name with options. 'holdfast list recipes' shows "
        "all.",
        metavar="RECIPE",
        rich_help_panel=_HOW,
    ),
]
ScratchOption = Annotated[
    bool,
    typer.Option("--from-scratch", help="Start from random weights.", rich_help_panel=_HOW),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting: batch_size=256, learning_rate=0.05, average=swa, ...",
        metavar="NAME=VALUE",
        rich_help_panel=_HOW,
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        help="A column of the --test table: accuracies are compared within its values.",
        metavar="COLUMN",
        rich_help_panel=_WHAT,
    ),
]
AuditOption = Annotated[
    int | None,
    typer.Option(
        "--audit-n",
        min=0,
        help="Samples of the audits; 0: no audits. As many as there is time for if not given.",
        metavar="N",
        rich_help_panel=_HOW,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Where checkpoints, card and model go; made from the options if not given.",
        metavar="DIR",
        show_default=False,
        rich_help_panel=_HOW,
    ),
]


def harden(
    model: Model,
    data: DataOption,
    threat: ThreatOption,
    validation: ValidationOption = None,
    test: TestOption = None,
    extra: ExtraOption = None,
    label: options.LabelOption = None,
    n: options.NumberOption = None,
    group: GroupOption = None,
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
    out: OutOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a model until it withstands small changes of its inputs, as well as a budget allows.

    Your file is not changed. Interrupted or killed, the same command goes on where it stopped. At
    the end stands a card (card.html) with what was gained, what it cost, and what got worse.
    """
    given = dict(locals())
    directory = out or _directory(given)
    run_harden(given, directory, as_json)


def _directory(given: dict[str, Any]) -> Path:
    """The same options give the same directory, so that the same command goes on."""
    free = ("as_json", "device", "out")
    content = {k: v for k, v in given.items() if k not in free}
    digest = hashlib.blake2b(repr(sorted(content.items())).encode(), digest_size=4).hexdigest()
    base = str(given["model"]).partition("(")[0].rpartition(":")[2]
    name = re.sub(r"[^A-Za-z0-9_]+", "-", Path(base).stem).strip("-") or "model"
    return Path(f"holdfast-harden-{name}-{digest}")


def run_harden(given: dict[str, Any], directory: Path, as_json: bool) -> None:
    """Run or go on, show the events, print the card."""
    from rich.console import Console

    from holdfast.cli.errors import INTERRUPTED, show_error
    from holdfast.cli.harden_display import display
    from holdfast.hardening.card import HardenCard
    from holdfast.hardening.harden import run_hardening
    from holdfast.hardening.telling import finished

    if finished(directory):
        card = HardenCard.load(directory)
        again = f"This hardening is finished. To do it anew, remove {directory} or give --out."
    else:
        again = ""
        try:
            with display(as_json) as show:
                card = _run(run_hardening(ask(given), directory), show)
        except KeyboardInterrupt:
            show_error("Interrupted. Give the same command again to go on.")
            raise typer.Exit(INTERRUPTED) from None
    if card is None:  # not the first of several processes
        return
    if as_json:
        typer.echo(card.model_dump_json())
        return
    console = Console()
    console.print(card.__rich__(), soft_wrap=True, highlight=False)
    console.print(f"The card: {directory / 'card.html'}", soft_wrap=True, highlight=False)
    if again:
        console.print(again, soft_wrap=True, highlight=False)


def _run(events: Any, show: Any) -> Any:
    """The card at the end of the events; None on all but the first of several processes."""
    import os

    is_first = os.environ.get("RANK", "0") == "0"
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value.card if is_first else None
        if is_first:
            show(event)


def ask(given: dict[str, Any]) -> Ask:
    """The options as a hardening.

    Raises:
        InputError: for options that cannot be read.
    """
    from holdfast.hardening.asking import Ask
    from holdfast.hardening.recipe_text import parse_recipe
    from holdfast.modalities import load
    from holdfast.threat import parse_threat

    train = load(given["data"], given["label"], given["n"])
    others = {
        name: load(given[name], given["label"]) if given[name] else None
        for name in ("validation", "test", "extra")
    }
    threats = tuple(parse_threat(text) for text in given["threat"])
    recipe = None if given["recipe"] == "auto" else parse_recipe(given["recipe"])
    return Ask(
        model=_opened(given, train),
        train=train,
        threats=threats,
        **others,
        recipe=recipe,
        seconds=_seconds(given["budget"]),
        epochs=given["epochs"],
        from_scratch=given["from_scratch"],
        settings=dict(_setting(text) for text in given["setting"] or ()),
        seed=given["seed"] or 0,
        audit=given["audit_n"] != 0,
        n_audit=given["audit_n"] or None,
        groups=_groups(given),
        source=given["model"],
        weights=given["weights"],
        command=shlex.join(["holdfast", *sys.argv[1:]]),
        names={k: str(given[k]) for k in ("data", "validation", "test", "extra") if given[k]},
    )


def _opened(given: dict[str, Any], train: Any) -> Any:
    """The model, wrapped, on the device."""
    from holdfast.cli import planning
    from holdfast.loading import open_model
    from holdfast.plan import ModelSpec, Plan

    box = planning.domain(given["domain"])
    spec = ModelSpec(
        source=given["model"],
        weights=given["weights"],
        mean=planning.numbers(given["mean"], "--mean"),
        std=planning.numbers(given["std"], "--std"),
        domain=(0.0, 1.0) if box is None else box,  # type: ignore[arg-type]
    )
    plan = Plan(model=spec, threats=tuple(given["threat"]), device=given["device"])
    return open_model(plan, train)


def _seconds(text: str | None) -> float | None:
    from holdfast.errors import PlanError
    from holdfast.plan import Budget

    if text is None:
        return None
    budget = Budget.parse(text)
    if budget.seconds is None or budget.passes or budget.queries:
        raise PlanError(f"The budget of a hardening is a time, e.g. 45min, not {text!r}.")
    return budget.seconds


def _setting(text: str) -> tuple[str, Any]:
    import ast

    from holdfast.errors import PlanError

    name, is_pair, value = text.partition("=")
    if not is_pair:
        raise PlanError(f"Cannot read --set {text!r}. Write name=value, e.g. batch_size=256.")
    if name.strip() == "augment":
        return "augment", tuple(part for part in re.split(r"[,+\s]+", value) if part)
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value.strip()


def _groups(given: dict[str, Any]) -> list[object] | None:
    """The values of a column, sample by sample."""
    from holdfast.errors import DataError, PrerequisiteError

    column, path = given["group"], given["test"]
    if column is None:
        return None
    if not path or not str(path).lower().endswith((".csv", ".tsv", ".parquet", ".pq")):
        raise DataError("--group names a column of a table: give the table with --test.")
    try:
        import pandas as pd
    except ImportError:
        raise PrerequisiteError('--group needs pandas: pip install "holdfast[data]"') from None
    is_parquet = str(path).lower().endswith((".parquet", ".pq"))
    frame = pd.read_parquet(path) if is_parquet else pd.read_csv(path, sep=None, engine="python")
    if column not in frame.columns:
        raise DataError(f"{path} has no column {column!r}. Columns: {', '.join(frame.columns)}.")
    return list(frame[column])
