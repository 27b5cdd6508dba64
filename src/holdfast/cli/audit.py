"""``holdfast audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli import options

if TYPE_CHECKING:
    from holdfast.cli.display import Show
    from holdfast.plan import Plan

EXAMPLES = """Examples:

  holdfast audit model.pt2 --data photos/ --threat linf:8/255

  holdfast audit zoo:resnet --weights best.pt --data test.npz --mean 0.5 --std 0.25 --threat l2:0.5

  holdfast audit model.onnx --data table.csv --label churn --domain data --threat linf:0.05

  holdfast audit plan.toml --n 100          repeats a run on other samples

  holdfast audit --resume holdfast-model-20260101-120000"""


def audit(
    model: options.ModelArgument = None,
    data: options.DataOption = None,
    threat: options.ThreatOption = None,
    label: options.LabelOption = None,
    n: options.NumberOption = None,
    weights: options.WeightsOption = None,
    access: options.AccessOption = None,
    targeted: options.TargetedOption = None,
    target: options.TargetOption = None,
    cascade: options.CascadeOption = None,
    quantise: options.QuantiseOption = None,
    verify: options.VerifyOption = None,
    trust: options.TrustOption = None,
    domain: options.DomainOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    classes: options.ClassesOption = None,
    budget: options.BudgetOption = None,
    seed: options.SeedOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchOption = None,
    precision: options.PrecisionOption = None,
    compiled: options.CompiledOption = False,
    workers: options.WorkersOption = None,
    threads: options.ThreadsOption = None,
    out: options.OutOption = None,
    resume: options.ResumeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Find out how often small changes of the input change a model's answer.

    Every attack's claim is replayed before it counts, and the result is an accuracy with an
    interval, a report to read (report.html) and one for machines (report.json).
    """
    from holdfast.cli import planning

    given: dict[str, Any] = {
        "data.source": data,
        "data.label": label,
        "data.n": n,
        "threats": tuple(threat) if threat else None,
        "model.weights": weights,
        "model.domain": planning.domain(domain),
        "model.mean": planning.numbers(mean, "--mean"),
        "model.std": planning.numbers(std, "--std"),
        "model.classes": classes,
        "access": planning.access(access),
        "target": planning.target(target, targeted),
        "cascade": cascade,
        "quantise": planning.quantise(quantise),
        "verify": verify,
        "trust": trust,
        "budget": planning.budget(budget),
        "seed": seed,
        "device": device,
        "batch_size": batch_size,
        "precision": precision,
        "compiled": compiled or None,
        "workers": workers,
        "threads": threads,
    }
    if resume is not None:
        plan, directory = _resumed(resume, model, out, given), resume
    else:
        plan = _planned(model, given)
        directory = out or planning.default_directory(plan.model.source)
    run_audit(plan, directory, as_json)


def _planned(model: str | None, given: dict[str, Any]) -> Plan:
    """The plan of a model and options, or of a plan file and options that replace parts of it."""
    from holdfast.cli.planning import make_plan
    from holdfast.errors import PlanError
    from holdfast.plan import Plan

    if model is None:
        raise PlanError(
            "Which model? Give model.pt2, model.onnx, package.module:function, or a plan: "
            "holdfast audit plan.toml. 'holdfast audit --help' shows examples."
        )
    if model.endswith(".toml"):
        return make_plan(Plan.load(Path(model)), given)
    return make_plan(None, given | {"model.source": model})


def _resumed(resume: Path, model: str | None, out: Path | None, given: dict[str, Any]) -> Plan:
    """The plan of an earlier run; only what cannot change a verdict may be given anew."""
    from holdfast.cli.planning import make_plan
    from holdfast.engine.journal import header_of, read
    from holdfast.errors import PlanError
    from holdfast.plan import Plan

    base = Plan.model_validate(header_of(read(resume)).plan)
    plan = make_plan(base, given)
    if model is not None or out is not None or plan.id != base.id:
        raise PlanError(
            "--resume goes on with the plan of that run: only --budget, --device, --batch-size, "
            "--workers, --threads and --json can be given with it. For another plan, start a new "
            "run."
        )
    return plan


def run_audit(plan: Plan, directory: Path, as_json: bool = False) -> None:
    """Run a plan, show its events, and write and print its report."""
    from holdfast.cli.display import display
    from holdfast.cli.errors import INTERRUPTED, show_error
    from holdfast.errors import ModelCrash

    resume = f"  holdfast audit --resume {directory}"
    try:
        with display(as_json) as show:
            _run(plan, directory, show)
    except KeyboardInterrupt:
        began = (directory / "plan.toml").is_file()
        intact = f"Interrupted. The journal in {directory} is intact. Go on with:\n{resume}"
        show_error(intact if began else "Interrupted before the run began.")
        raise typer.Exit(INTERRUPTED) from None
    except ModelCrash as error:
        raise ModelCrash(f"{error}\n{resume}") from error
    from holdfast.cli.report import write_reports

    write_reports(directory, quiet=as_json)


def _run(plan: Plan, directory: Path, show: Show) -> None:
    from holdfast.engine.run import run
    from holdfast.loading import open_model
    from holdfast.modalities import load

    data = load(plan.data.source, plan.data.label, plan.data.n)
    model = open_model(plan, data)
    for event in run(plan, model, data, directory):
        show(event)
