"""The options of ``holdfast audit``, in the groups that the help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_WHAT = "What to audit"
_ATTACKER = "The attacker"
_INPUTS = "The model's inputs and outputs"
_RUN = "The run"

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL|PLAN",
        help="model.pt2 (torch.export), model.onnx, package.module:function, or plan.toml.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A folder with one sub-folder per class, data.npz, table.csv, idx files, or digits.",
        metavar="DATA",
        rich_help_panel=_WHAT,
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        help="The column with the label, in tables.", metavar="COLUMN", rich_help_panel=_WHAT
    ),
]
NumberOption = Annotated[
    int | None,
    typer.Option("--n", min=1, help="Use the first N samples.", metavar="N", rich_help_panel=_WHAT),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="A state dict (.pt, .safetensors) for package.module:function.",
        metavar="FILE",
        rich_help_panel=_WHAT,
    ),
]
ThreatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--threat",
        help="What may change: linf:8/255, l2:0.5, l1:12, l0:20. May be given several times.",
        metavar="THREAT",
        rich_help_panel=_ATTACKER,
    ),
]
AccessOption = Annotated[
    str | None,
    typer.Option(
        help="What the attacker sees: gradients (the default), scores, or labels.",
        metavar="LEVEL",
        rich_help_panel=_ATTACKER,
    ),
]
TargetedOption = Annotated[
    bool | None,
    typer.Option(
        "--targeted",
        help="The attacker wants one particular wrong answer; see --target.",
        rich_help_panel=_ATTACKER,
        show_default=False,
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Which one: random, least_likely, runner_up, or a class number.",
        metavar="RULE|CLASS",
        rich_help_panel=_ATTACKER,
    ),
]
CascadeOption = Annotated[
    str | None,
    typer.Option(
        help="Which attacks, in which order: standard (the default), quick, or a TOML file.",
        metavar="NAME|FILE",
        rich_help_panel=_ATTACKER,
    ),
]
QuantiseOption = Annotated[
    str | None,
    typer.Option(
        help="8bit: a change counts only if it survives rounding to an 8-bit image.",
        metavar="8bit",
        rich_help_panel=_ATTACKER,
    ),
]
TrustOption = Annotated[
    str | None,
    typer.Option(
        help="act: look whether attacks were misled, and add others; reroute: add no longer "
        "ones, only such that follow other gradients; look: look only; or off.",
        metavar="HOW",
        rich_help_panel=_ATTACKER,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="float32 (the default), bf16 or tf32: of the search; verdicts are given in float32.",
        metavar="TYPE",
        rich_help_panel=_RUN,
    ),
]
CompiledOption = Annotated[
    bool,
    typer.Option(
        "--compiled",
        help="Let the search run code made by torch.compile; verdicts are the model's own.",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
VerifyOption = Annotated[
    str | None,
    typer.Option(
        help="auto, off, fast, standard or thorough: prove what holds, beside the attacks. "
        "auto proves survivors while that costs little.",
        metavar="EFFORT",
        rich_help_panel=_ATTACKER,
    ),
]
DomainOption = Annotated[
    str | None,
    typer.Option(
        help="Smallest and largest valid input: 0,1 (the default), or 'data' for each feature's "
        "range.",
        metavar="LOW,HIGH|data",
        rich_help_panel=_INPUTS,
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        help="Subtracted from the inputs before the model, per channel: 0.485,0.456,0.406.",
        metavar="NUMBERS",
        rich_help_panel=_INPUTS,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        help="What the inputs are divided by after that.",
        metavar="NUMBERS",
        rich_help_panel=_INPUTS,
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of classes, for models that answer with labels only.",
        metavar="K",
        rich_help_panel=_INPUTS,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Stop after 10min, 200passes per sample, 1000queries per sample, or several.",
        metavar="BUDGET",
        rich_help_panel=_RUN,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        help="Of all random numbers; 0 if not given.", metavar="SEED", rich_help_panel=_RUN
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ... The GPU if there is one.",
        metavar="DEVICE",
        rich_help_panel=_RUN,
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Inputs per call of the model at most. Results do not depend on it.",
        metavar="N",
        rich_help_panel=_RUN,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that attack, on a CUDA device each where there are several. Same results.",
        metavar="N",
        rich_help_panel=_RUN,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of every process. Default: what a short measurement finds fastest.",
        metavar="N",
        rich_help_panel=_RUN,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Where journal, plan and report go; holdfast-<model>-<time> if not given.",
        metavar="DIR",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Go on with the run in this directory.",
        rich_help_panel=_RUN,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one event per line as JSON.", rich_help_panel=_RUN),
]
