"""The best point that a sample's earlier stages met, for a later stage to go on from.

An attack ends with a verdict and a margin; where it had been is gone, and a search that begins
afresh has to find its way to the boundary again. A stage with ``start = "best"`` gets the allowed
point of largest margin that all earlier jobs met under the same threat, the first of equals.

Points are appended to a file beside the journal, each before the record that tells its margin, and
found again by sample and margin. So a run that goes on has the same ones, wherever its journal was
cut: what lies in the file beyond that is passed over, and met again. Only points of samples that a
stage may still ask for are written; the file is removed when the run is over.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from holdfast.engine.cascade import fitting
from holdfast.engine.journal import adversarial_path, storage_error
from holdfast.threat import Threat

if TYPE_CHECKING:
    from holdfast.engine.run import Context

_HEAD = struct.Struct("<qd")  # sample, margin; a point in float32 follows


class Handover:
    """The points of one threat."""

    def __init__(self, context: Context, threat: Threat) -> None:
        self.shape = tuple(context.data.shape)
        self.device = context.model.device
        stages = context.plan.resolved_stages
        self._n_planned = len(stages)
        steps, _ = fitting(stages, threat.norm, context.model.access)
        self._asking = [step for step in steps if step.starts_at_best]
        self._path = _path(context.journal.directory, threat.describe())
        self._size = _HEAD.size + 4 * math.prod(self.shape)
        self._places = self._indexed()

    @property
    def is_needed(self) -> bool:
        """Whether any stage of the plan asks for points."""
        return bool(self._asking)

    def wants(self, stage: int, left: float) -> bool:
        """Whether the point that leaves this share of the margin may be asked for after ``stage``.

        Stages that a look added come before the rest of the plan's.
        """
        after = stage if stage < self._n_planned else 0
        return any(s.stage >= after and s.terms.wants(left, 0, 0.0) for s in self._asking)

    def write(self, sample: int, margin: float, point: Tensor) -> None:
        """Keep a point, unless it was met and kept before the run was cut.

        Raises:
            JournalError: where the disk is full or cannot be written.
        """
        if (sample, margin) in self._places:
            return
        values = point.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            with self._path.open("ab") as file:
                place = file.tell()
                file.write(_HEAD.pack(sample, margin) + values.tobytes())
        except OSError as error:
            raise storage_error(error, self._path.parent) from None
        self._places[sample, margin] = place

    def read(self, keys: Sequence[tuple[int, float]]) -> list[Tensor | None]:
        """The points of samples with these margins; None where there is none."""
        places = [self._places.get(key) for key in keys]
        if not any(place is not None for place in places):
            return [None] * len(places)
        with self._path.open("rb") as file:
            return [None if place is None else self._point(file, place) for place in places]

    def _point(self, file: BinaryIO, place: int) -> Tensor:
        file.seek(place + _HEAD.size)
        values = np.frombuffer(file.read(self._size - _HEAD.size), np.float32).copy()
        return torch.from_numpy(values).reshape(self.shape).to(self.device)

    def _indexed(self) -> dict[tuple[int, float], int]:
        """Where every point of an earlier sitting lies; a torn last one is cut off."""
        if not self._path.exists():
            return {}
        found: dict[tuple[int, float], int] = {}
        whole = self._path.stat().st_size // self._size * self._size
        with self._path.open("r+b") as file:
            file.truncate(whole)
            for place in range(0, whole, self._size):
                file.seek(place)
                sample, margin = _HEAD.unpack(file.read(_HEAD.size))
                found[sample, margin] = place
        return found


def forget(directory: Path, threats: Sequence[Threat]) -> None:
    """Remove the files of a run that is over."""
    for threat in threats:
        _path(directory, threat.describe()).unlink(missing_ok=True)


def _path(directory: Path, threat: str) -> Path:
    """Where the points under one threat lie."""
    name = adversarial_path(directory, threat).stem.replace("adversarial", "best", 1)
    return directory / f"{name}.points"
