"""A run that looks real, written through the records alone: no model, no engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from holdfast.engine import journal
from holdfast.plan import Plan, Stage
from holdfast.record import (
    RECORD,
    AnyRecord,
    Attempt,
    Clean,
    Failure,
    Finding,
    Header,
    Outcome,
    Radius,
    Session,
)
from holdfast.threat import parse_threat

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STAGES = (
    Stage(attack="apgd", loss="ce", steps=100),
    Stage(attack="square", queries=5000),
)


@dataclass(frozen=True)
class Run:
    """What happened: change single fields to get the odd cases."""

    n: int = 200
    k: int = 10
    shape: tuple[int, ...] = (1, 28, 28)
    threats: tuple[str, ...] = ("linf:0.3",)
    class_names: tuple[str, ...] = DIGITS
    clean: float = 0.96
    falls: tuple[float, ...] = (0.35, 0.05)
    """Fraction of the samples that reach a stage and fall in it."""
    n_finished: int | None = None
    """Samples that got all attacks; None: all."""
    outcome: str = "finished"
    plan: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    extra: tuple[AnyRecord, ...] = ()
    seed: int = 0


def plan_of(run: Run) -> Plan:
    return Plan(threats=run.threats, **{"stages": STAGES, **run.plan})


def records(run: Run) -> list[AnyRecord]:
    rng = np.random.default_rng(run.seed)
    plan = plan_of(run)
    clean = [_clean(run, plan, i, rng) for i in range(run.n)]
    out: list[AnyRecord] = [_header(run, plan), *run.extra, *clean]
    for threat in run.threats:
        for record in clean:
            out += _attempts(run, plan, threat, record, rng)
    forward = sum(getattr(r, "forward", 0) for r in out) + 3 * run.n
    backward = sum(getattr(r, "backward", 0) for r in out)
    out.append(
        Session(
            outcome=run.outcome,  # type: ignore[arg-type]
            seconds=83.4,
            passes_forward=forward,
            passes_backward=backward,
            peak_memory_mb=412.5,
        )
    )
    return out


def _header(run: Run, plan: Plan) -> Header:
    return Header(
        plan_id=plan.id,
        plan=plan.model_dump(mode="json"),
        created="2026-03-02T09:41:00+00:00",
        command="holdfast audit digits_cnn.pt2 --data digits --threat "
        + " --threat ".join(run.threats),
        environment={"holdfast": "0.1.0", "python": "3.12.1", "torch": "2.6.0", "device": "cpu"},
        model={
            "description": "digits_cnn.pt2",
            "hash": "8f14e45fceea167a",
            "n_parameters": 54410,
            "access": "gradients",
            "head": "logits",
            "n_classes": run.k,
            "domain": "[0, 1]",
            "is_random": False,
            "row_quantum": 1,
            **run.model,
        },
        data={
            "description": "synthetic digits",
            "hash": "c9f0f895fb98ab91",
            "n_samples": run.n,
            "shape": list(run.shape),
            "class_names": list(run.class_names),
        },
    )


def _clean(run: Run, plan: Plan, i: int, rng: np.random.Generator) -> Clean:
    y = int(rng.integers(run.k))
    right = rng.random() < run.clean
    confidence = float(rng.uniform(0.7, 1.0) if right else rng.uniform(0.0, 0.4))
    target = int((y + 1) % run.k) if plan.goal.is_targeted else -1
    return Clean(
        sample=i,
        key=f"{i:016x}",
        y=y,
        prediction=y if right else (y + 1) % run.k,
        target=target,
        confidence=confidence,
        confidence_predicted=confidence if right else 1 - confidence,
        margin=-4 * confidence if right else 1.0,
        loss=-float(np.log(max(confidence, 1e-9))),
        forward=1,
    )


def _attempts(run: Run, plan: Plan, threat: str, clean: Clean, rng: np.random.Generator):
    if clean.prediction != clean.y:
        return
    eps = float(parse_threat(threat).eps)  # type: ignore[attr-defined]
    finished = run.n_finished is None or clean.sample < run.n_finished
    for stage, (fall, spec) in enumerate(zip(run.falls, plan.resolved_stages, strict=False)):
        if not finished and stage > 0:
            return
        is_broken = rng.random() < fall
        gradient = spec.attack != "square"
        spent = int(rng.integers(2, 40)) if is_broken else (100 if gradient else 5000)
        confidence = float(rng.uniform(0.02, 0.45) if is_broken else rng.uniform(0.4, 0.95))
        yield Attempt(
            threat=threat,
            sample=clean.sample,
            stage=stage,
            attack=spec.describe(),
            target=clean.target,
            outcome=Outcome.BROKEN if is_broken else Outcome.SURVIVED,
            forward=spent,
            backward=spent if gradient else 0,
            margin=1.5 - 3 * confidence,
            loss=-float(np.log(confidence)),
            confidence=confidence,
            prediction=(clean.y + 3) % run.k if is_broken else -1,
            prediction_confidence=0.98 - confidence if is_broken else 0.0,
            distance=eps if is_broken else None,
        )
        if is_broken:
            if plan.curve_steps:
                radius = eps * float(rng.beta(4, 2))
                yield Radius(threat=threat, sample=clean.sample, radius=radius, forward=6)
            return


def write(run: Run, directory: Path) -> Path:
    """The run's directory as the engine leaves it: journal, adversarial inputs, examples."""
    directory.mkdir(parents=True, exist_ok=True)
    found = records(run)
    lines = b"".join(RECORD.dump_json(record) + b"\n" for record in found)
    (directory / "journal.jsonl").write_bytes(lines)
    x = inputs(run)
    pictures: dict[str, torch.Tensor] = {}
    for threat in run.threats:
        radius = {r.sample: r.radius for r in found if isinstance(r, Radius) and r.threat == threat}
        broken = [
            r.sample
            for r in found
            if isinstance(r, Attempt) and r.outcome is Outcome.BROKEN and r.threat == threat
        ]
        x_adv = torch.zeros_like(x)
        x_adv[broken] = changed(x[broken], float(parse_threat(threat).eps))  # type: ignore[attr-defined]
        save_file({"x_adv": x_adv}, journal.adversarial_path(directory, threat))
        easiest = sorted(broken, key=lambda s: radius.get(s, 0.0))[:24]
        if easiest:
            pictures[f"{threat}/x"] = x[easiest]
            pictures[f"{threat}/x_adv"] = x_adv[easiest]
            pictures[f"{threat}/sample"] = torch.tensor(easiest)
    save_file(pictures, directory / "examples.safetensors")
    return directory


def inputs(run: Run) -> torch.Tensor:
    """Smooth blobs in [0, 1]: something to look at."""
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.rand(run.n, *run.shape, generator=generator)
    for axis in range(1, x.ndim):
        if x.shape[axis] > 4:
            for _ in range(6):
                x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
    low, high = x.amin(), x.amax()
    return ((x - low) / (high - low)).contiguous()


def changed(x: torch.Tensor, eps: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sign = (torch.rand(x.shape, generator=generator) > 0.5).float() * 2 - 1
    return (x + min(eps, 0.3) * sign).clamp(0, 1)


__all__ = ["DIGITS", "STAGES", "Failure", "Finding", "Run", "inputs", "plan_of", "records", "write"]
