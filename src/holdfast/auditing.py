"""``holdfast.audit``: the whole question in one call."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from holdfast.data import Data, as_data
from holdfast.engine.run import run
from holdfast.errors import PlanError
from holdfast.events import Event
from holdfast.model import Model
from holdfast.plan import (
    Budget,
    ModelSpec,
    Plan,
    Stage,
    as_budget,
    cascades,
    checked,
    stages_of,
)
from holdfast.threat import Access, Threat, parse_access, parse_threats

if TYPE_CHECKING:
    from holdfast.reports.report import Report


def audit(
    model: Model | nn.Module | Callable[..., Any] | str,
    data: Data | tuple[Any, Any] | str | Any,
    threat: Threat | str | Sequence[Threat | str],
    *,
    cascade: str | Sequence[Stage | dict[str, Any]] = "standard",
    budget: Budget | str | None = None,
    target: str | int | None = None,
    access: Access | str | None = None,
    quantise: str | None = None,
    precision: str = "float32",
    compiled: bool = False,
    verify: str = "auto",
    trust: str | None = None,
    curve_steps: int = 6,
    n: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    out: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Report:
    """Can small changes of the input change this model's answer, how often, and how sure is that?

    Args:
        model: A ``torch.nn.Module`` or callable with inputs in [0, 1] and logits out; a
            :class:`~holdfast.Model` for other domains, normalisation inside or other access; or a
            reference as on the command line (``model.pt2``, ``.onnx``, ``package.module:name``).
        data: ``(x, y)`` tensors or arrays, a ``Dataset``, a ``DataLoader``, or a path or name.
        threat: ``"linf:8/255"``, ``"l2:0.5"``, ``"l1:12"``, ``"l0:20"``, a threat object, or
            several of them: each is audited, and their union reported.
        cascade: ``"standard"``, ``"quick"``, the path of a TOML file, or the stages themselves,
            e.g. ``[{"attack": "pgd", "steps": 40}]``.
        budget: ``"10min"``, ``"200passes"`` (per sample), ``"1000queries"``; None: no limit.
        target: None for any wrong answer, a class, or ``random``, ``least_likely``, ``runner_up``.
        access: ``gradients``, ``scores`` or ``labels``; None: all that the model gives.
        quantise: ``"8bit"`` counts only adversarial inputs that survive rounding to 8 bits.
        trust: ``"act"``: look whether the attacks were misled, and add attacks that are not;
            ``"reroute"``: add such that follow other gradients, but no longer ones; ``"look"``:
            look only; ``"off"``: neither. None: ``"act"``, but ``"reroute"`` for ``quick``, and
            for published protocols (``autoattack``), which stay as they are, ``"look"``.
        precision: Of the search: ``"bf16"``, or ``"tf32"`` on NVIDIA's GPUs, are faster where the
            processor has units for them; every verdict is given in float32.
        compiled: Let the search run ``torch.compile``'s code; every verdict is the model's own.
        verify: ``"fast"``, ``"standard"`` or ``"thorough"``: prove what holds, beside the attacks,
            so that the report closes in from both sides; ``"auto"``: prove survivors while that
            costs little, in silence where it cannot; ``"off"``: attacks alone.
        curve_steps: Forward passes per broken sample for the accuracy-against-eps curve.
        n: Audit the first n samples.
        seed: Of all random numbers.
        batch_size: Inputs in flight; the result does not depend on it.
        device: Where to run; None: where the model is.
        workers: Processes that attack; the result does not depend on it.
        threads: Threads of every process; None: what a short measurement finds fastest.
        out: Directory for the journal; a second call with the same plan goes on with it. None: a
            temporary one, removed with the report.
        on_event: Called with every event, for progress.

    Returns:
        The report; ``report.save("report.html")`` writes it, ``print(report)`` summarises it.

    Raises:
        InputError: where model, data, threat and options do not fit together.
        ModelCrash: where the model raises in the middle.
    """
    from holdfast.reports.report import Report

    described = ModelSpec(source=model) if isinstance(model, str) else ModelSpec()
    wrapped = _model(model, device, batch_size, access)
    threats = parse_threats(threat)
    asked = {
        "model": described,
        "data": {"source": data if isinstance(data, str) else "", "n": n},
        "threats": [t.describe() for t in threats],
        "target": target,
        "access": parse_access(access) if access is not None else wrapped.access,
        **_stages(cascade),
        "seed": seed,
        "budget": as_budget(budget),
        "quantise": quantise,
        "precision": precision,
        "compiled": compiled,
        "verify": verify,
        "trust": trust,
        "curve_steps": curve_steps,
        "batch_size": batch_size,
        "device": device,
        "workers": workers,
        "threads": threads,
    }
    with checked("The options", Plan):
        plan = Plan.model_validate(asked)
    directory = Path(tempfile.mkdtemp(prefix="holdfast-") if out is None else out)
    for event in run(plan, wrapped, as_data(data, n), directory, threats):
        if on_event is not None:
            on_event(event)
    report = Report.load(directory)
    if out is None:
        weakref.finalize(report, shutil.rmtree, directory, ignore_errors=True)
    return report


def _model(
    model: Any, device: str | None, batch_size: int | None, access: Access | str | None
) -> Model:
    if isinstance(model, Model):
        return model
    options = {"device": device, "batch_size": batch_size, "access": access}
    if isinstance(model, (str, Path)):
        from holdfast.loading import load_model

        loaded = load_model(str(model))
        return Model(loaded.f, **options, description=loaded.description)
    return Model(model, **options)


def _stages(cascade: str | Sequence[Stage | dict[str, Any]]) -> dict[str, Any]:
    if isinstance(cascade, (str, Path)):
        return {"cascade": str(cascade)}
    if not isinstance(cascade, (list, tuple)) or not cascade:
        raise PlanError(
            f"{cascade!r} is no cascade. Give a name ({', '.join(cascades())}), the path of a TOML "
            "file, or at least one stage, e.g. [{'attack': 'pgd', 'steps': 40}]."
        )
    return {"cascade": "custom", "stages": stages_of(cascade, "the cascade")}
