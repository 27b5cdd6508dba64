"""Options as they are typed -> a plan."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import PlanError
from holdfast.plan import Budget, Plan, checked
from holdfast.threat import parse_threat

_ACCESS = {"gradient": "gradients", "score": "scores", "label": "labels", "decision": "labels"}


def make_plan(base: Plan | None, given: Mapping[str, Any]) -> Plan:
    """A plan from the options that were given, over a plan file where there is one.

    Args:
        base: The plan file's content.
        given: Options by their place in the plan, e.g. ``model.source``; None: not given.

    Raises:
        PlanError: for options that are missing, unreadable or contradict each other.
        ThreatError: for a threat that does not exist.
    """
    content: dict[str, Any] = base.model_dump() if base else {}
    for place, value in given.items():
        if value is None:
            continue
        section, _, field = place.rpartition(".")
        (content.setdefault(section, {}) if section else content)[field] = value
    if given.get("cascade") is not None:
        content["stages"] = ()
    _check_complete(content)
    with checked("The options", Plan):
        plan = Plan.model_validate(content)
    for threat in plan.threats:
        parse_threat(threat)
    assert plan.resolved_stages
    return plan


def _check_complete(content: Mapping[str, Any]) -> None:
    if not content.get("data", {}).get("source"):
        raise PlanError(
            "Which data? Give --data: a folder with one sub-folder per class, data.npz, "
            "table.csv, idx files, or digits. 'holdfast list data' shows all forms."
        )
    if not content.get("threats"):
        raise PlanError(
            "What may the attacker change? Give --threat, e.g. --threat linf:8/255 (every pixel "
            "by at most 8/255). 'holdfast list threats' shows all."
        )


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``0.49,0.48,0.45`` -> the numbers.

    Raises:
        PlanError: for anything else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip(" ,[]()")))
    except ValueError:
        raise PlanError(
            f"Cannot read {option} {text!r}. Write one number per channel with commas, e.g. "
            f"{option} 0.485,0.456,0.406."
        ) from None


def domain(text: str | None) -> tuple[float, ...] | str | None:
    """``0,1`` -> the box; ``data`` -> each feature's range in the data."""
    if text is None or text == "data":
        return text
    box = numbers(text, "--domain")
    if box is None or len(box) != 2 or not box[0] < box[1]:
        raise PlanError(
            f"Cannot read --domain {text!r}. Write the smallest and the largest valid input, e.g. "
            "0,1 or -1,1, or 'data' for each feature's range in the data."
        )
    return box


def target(text: str | None, is_targeted: bool | None) -> str | int | None:
    """The goal: a class number, a rule's name, ``random`` where only ``--targeted`` was given."""
    if text is None:
        return "random" if is_targeted else None
    return int(text) if text.isdecimal() else text


def access(text: str | None) -> str | None:
    """``gradient`` or ``gradients``, and the like."""
    return None if text is None else _ACCESS.get(text.lower(), text.lower())


def budget(text: str | None) -> dict[str, Any] | None:
    """``10min`` -> the fields of a budget."""
    return None if text is None else Budget.parse(text).model_dump()


def quantise(text: str | None) -> str | None:
    """``8bit``, also written ``8`` or ``8-bit``."""
    return None if text is None else re.sub(r"^8(-?bits?)?$", "8bit", text.lower())


def default_directory(source: str) -> Path:
    """``holdfast-<model>-<time>``, in the current directory."""
    base = source.partition("(")[0]
    name = Path(base).stem if base.endswith((".pt2", ".onnx")) else base.rpartition(":")[2]
    safe = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "model"
    return Path(f"holdfast-{safe}-{time.strftime('%Y%m%d-%H%M%S')}")
