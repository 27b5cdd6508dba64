"""Is this the same run? What identifies model, data and machine, and how a run is repeated."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast._version import __version__
from holdfast.data import Data
from holdfast.engine.scan import Scan
from holdfast.errors import JournalError
from holdfast.model import Model
from holdfast.plan import Plan
from holdfast.record import Header


def header(plan: Plan, model: Model, data: Data, seen: Scan, directory: Path) -> Header:
    """The first line of a new journal."""
    return Header(
        plan_id=plan.id,
        plan=plan.model_dump(mode="json"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(plan, directory),
        environment=environment(model),
        model=_describe_model(model),
        data={
            "description": data.description,
            "hash": seen.hash,
            "n_samples": len(data),
            "shape": list(data.shape),
            "class_names": list(data.class_names),
        },
        tuning=asdict(model.tuning),
    )


def check_same_run(old: Header, new: Header, directory: Path) -> None:
    """Refuse to go on with another plan, model or data.

    Raises:
        JournalError: saying what differs.
    """
    differs = []
    if old.plan_id != new.plan_id:
        changed = [k for k, v in new.plan.items() if old.plan.get(k) != v]
        differs.append(f"the plan ({old.plan_id}, now {new.plan_id}: {', '.join(changed)})")
    if old.data.get("hash") != new.data.get("hash"):
        differs.append("the data")
    if old.model.get("hash") != new.model.get("hash"):
        differs.append("the model's weights")
    if differs:
        raise JournalError(
            f"{directory} holds another run: {' and '.join(differs)} changed since. Give another "
            "--out directory, or resume with what it was started with."
        )


def environment(model: Model) -> dict[str, str]:
    """Versions and machine."""
    device = str(model.device)
    if model.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(model.device)})"
    return {
        "holdfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }


def _command(plan: Plan, directory: Path) -> str:
    if plan.model.source and plan.data.source:
        return f"holdfast audit {directory / 'plan.toml'}"
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return "python " + " ".join(words) if words[0] else "holdfast.audit(...) from Python"


def _describe_model(model: Model) -> dict[str, Any]:
    parameters = [p for module in model.modules for p in module.parameters()]
    return {
        "description": model.description,
        "hash": _hash(model),
        "n_parameters": sum(p.numel() for p in parameters),
        "access": model.access.value,
        "head": model.head.kind,
        "n_classes": model.n_classes,
        "domain": model.domain.describe(),
        "is_random": model.is_random,
        "row_quantum": model.block.size,
    }


def _hash(model: Model) -> str:
    """Of all weights and buffers; empty for a model that shows none."""
    digest = hashlib.blake2b(digest_size=16)
    tensors = [t for module in model.modules for t in (*module.parameters(), *module.buffers())]
    for tensor in tensors:
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest() if tensors else ""
