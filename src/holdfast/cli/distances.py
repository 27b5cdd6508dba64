"""``holdfast distances``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import options
from holdfast.errors import PlanError

EXAMPLES = """Examples:

  holdfast distances model.pt2 --data photos/

  holdfast distances model.pt2 --data test.npz --norm linf --norm l2 --budget 200 --n 500"""

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="model.pt2 (torch.export) or package.module:function; gradients are needed, so no "
        "ONNX.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Where page and changed inputs go; holdfast-<model>-<time> if not given.",
        metavar="DIR",
        rich_help_panel="The run",
        show_default=False,
    ),
]
NormOption = Annotated[
    list[str] | None,
    typer.Option(
        "--norm",
        help="linf, l2 (if not given), l1 or l0: how the size of a change is measured. May be "
        "given several times.",
        metavar="NORM",
        rich_help_panel="The attacker",
    ),
]
PassesOption = Annotated[
    int,
    typer.Option(
        "--budget",
        help="Forward plus backward passes per sample and norm.",
        metavar="PASSES",
        rich_help_panel="The run",
    ),
]


def distances(
    model: ModelArgument = None,
    data: options.DataOption = None,
    norm: NormOption = None,
    label: options.LabelOption = None,
    n: options.NumberOption = None,
    weights: options.WeightsOption = None,
    domain: options.DomainOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    budget: PassesOption = 1000,
    seed: options.SeedOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchOption = None,
    out: OutOption = None,
) -> None:
    """Find the smallest change of every input that changes the model's answer.

    No size has to be chosen: one run gives the accuracy at every size, and the size that half of
    the samples do not survive. A page (distances.html), the same for machines (distances.json),
    and the changed inputs (changed-NORM.npz) go to a directory.
    """
    from holdfast.cli import planning

    if model is None or model.endswith(".toml"):
        raise PlanError(
            f"Which model? {model or 'Nothing'} was given; give model.pt2 or "
            "package.module:function. 'holdfast distances --help' shows examples."
        )
    norms = tuple(norm or ("l2",))
    given: dict[str, Any] = {
        "model.source": model,
        "model.weights": weights,
        "model.domain": planning.domain(domain),
        "model.mean": planning.numbers(mean, "--mean"),
        "model.std": planning.numbers(std, "--std"),
        "data.source": data,
        "data.label": label,
        "data.n": n,
        "threats": tuple(f"{name}:1" for name in norms),  # sizes are not used
        "device": device,
    }
    plan = planning.make_plan(None, given)
    directory = out or planning.default_directory(model)
    _run(plan, norms, {"budget": budget, "seed": seed or 0, "batch_size": batch_size}, directory)


def _run(plan: Any, norms: tuple[str, ...], options: dict[str, Any], directory: Path) -> None:
    from holdfast.evaluation.distances import minimal_distances
    from holdfast.loading import open_model
    from holdfast.modalities import load
    from holdfast.reports.distances import write

    data = load(plan.data.source, plan.data.label, plan.data.n)
    model = open_model(plan, data)
    x, y = data.fetch(range(len(data)))
    found = []
    for norm in dict.fromkeys(norms):
        found.append(minimal_distances(model, x, y, norm=norm, **options))
        typer.echo(f"{found[-1]}\n")
    write(directory, plan.model.source, plan.data.source, found)
    typer.echo(f"The page: {directory / 'distances.html'}")
