"""The best point that a sample's earlier stages met, for a later stage to go on from.

An attack ends with a verdict and a margin; where it had been is gone, and a search that begins
afresh has to find its way to the boundary again. A stage with ``start = "best"`` gets the allowed
point of largest margin that all earlier jobs met under the same threat, the first of equals.

The points wait in a file beside the journal. Each is written before the record that tells its
margin, so a run that goes on has the same ones: a job that was lost with its run meets the same
point again, and writes it over itself. Only points of samples that a stage may still ask for are
written; the file is removed when the run is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.engine.cascade import fitting
from holdfast.engine.journal import RowFile, adversarial_path
from holdfast.threat import Threat

if TYPE_CHECKING:
    from holdfast.engine.run import Context


class Handover:
    """The points of one threat."""

    def __init__(self, context: Context, threat: Threat) -> None:
        self.context, self.text = context, threat.describe()
        stages = context.plan.resolved_stages
        self._n_planned = len(stages)
        steps, _ = fitting(stages, threat.norm, context.model.access)
        self._asking = [step for step in steps if step.starts_at_best]

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

    def write(self, samples: Sequence[int], points: Sequence[Tensor]) -> None:
        """Keep the best points of some samples."""
        if samples:
            self._file().write(samples, torch.stack(list(points)))

    def read(self, samples: Sequence[int]) -> Tensor | None:
        """The points ``(n, *shape)``, zero where there is none; None where there is no file."""
        if not path(self.context, self.text).exists():
            return None
        return self._file().read(samples).to(self.context.model.device)

    def _file(self) -> RowFile:
        context = self.context
        shape = tuple(context.data.shape)
        return context.journal.rows(path(context, self.text), "x", len(context.data), shape)


def path(context: Context, text: str) -> Path:
    """Where the points under one threat lie."""
    name = adversarial_path(context.journal.directory, text).name
    return context.journal.directory / name.replace("adversarial", "best", 1)


def forget(context: Context, threats: Sequence[Threat]) -> None:
    """Remove the files of a run that is over."""
    for threat in threats:
        path(context, threat.describe()).unlink(missing_ok=True)
