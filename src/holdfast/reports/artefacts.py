"""What a run leaves beside its journal: adversarial inputs, and a few samples to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from holdfast.engine import journal
from holdfast.errors import InputError, JournalError
from holdfast.record import Verdict

if TYPE_CHECKING:
    from holdfast.reports.report import Report

EXAMPLES = "examples.safetensors"


@dataclass(frozen=True, slots=True)
class Example:
    """A broken sample: number, row in the report, original and changed input ``(*shape)``."""

    sample: int
    row: int
    x: Tensor
    x_adv: Tensor


def adversarial(report: Report, threat: str | None) -> tuple[Tensor, Tensor]:
    """Numbers of the broken samples ``(m,)`` int64 and their adversarial inputs ``(m, *shape)``.

    With ``threat`` None, every sample that any threat breaks, by the first that does.

    Raises:
        InputError: where the report holds no such threat.
        JournalError: where the adversarial inputs are not there.
    """
    if threat is not None and threat not in report.threats:
        raise InputError(f"No threat {threat!r} here. Audited: {', '.join(report.threats)}.")
    directory = _directory(report)
    found: dict[int, Tensor] = {}
    for name in report.threats if threat is None else [threat]:
        verdicts = report.threats[name].verdict
        pairs = zip(report.samples.sample, verdicts, strict=True)
        broken = [s for s, v in pairs if v == Verdict.BROKEN and s not in found]
        if broken:
            path = journal.adversarial_path(directory, name)
            found.update(zip(broken, _rows(path, "x_adv", broken), strict=True))
    numbers = sorted(found)
    shape = tuple(report.data.get("shape", ()))
    points = [found[s] for s in numbers]
    return torch.tensor(numbers, dtype=torch.int64), (
        torch.stack(points) if points else torch.empty(0, *shape)
    )


def examples(report: Report, threat: str) -> list[Example]:
    """The most easily broken samples, the easiest first; none where the run left no pictures."""
    path = report.directory / EXAMPLES if report.directory else None
    if path is None or not path.is_file():
        return []
    tensors = _read(path, [f"{threat}/{part}" for part in ("sample", "x", "x_adv")])
    if len(tensors) < 3:
        return []
    rows = {sample: row for row, sample in enumerate(report.samples.sample)}
    result, radius = [], report.threats[threat].radius
    for i, sample in enumerate(tensors[f"{threat}/sample"].tolist()):
        row = rows.get(sample)
        if row is not None and report.threats[threat].verdict[row] == Verdict.BROKEN:
            x, x_adv = tensors[f"{threat}/x"][i], tensors[f"{threat}/x_adv"][i]
            result.append(Example(sample, row, x, x_adv))
    return sorted(result, key=lambda e: (radius[e.row] or 0.0, e.sample))


def _directory(report: Report) -> Path:
    if report.directory is None:
        raise JournalError(
            "This report does not know the run's directory, where adversarial inputs are. Load it "
            "with Report.load(directory)."
        )
    return report.directory


def _rows(path: Path, name: str, rows: Sequence[int]) -> Tensor:
    """Some rows of a tensor that may be larger than the memory."""
    with _opened(path) as file:
        part = file.get_slice(name)
        return torch.cat([part[row : row + 1] for row in rows])


def _read(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the file holds."""
    with _opened(path) as file:
        held = set(file.keys())
        return {name: file.get_tensor(name) for name in names if name in held}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise JournalError(
            f"Cannot read {path}: {error}. Resume the run in that directory to write it again."
        ) from None
