"""The gradient that the first attack begins with, from the forward pass of the clean measurement.

A stage such as FGSM asks for a gradient at x, where the clean pass has just been. Run with
gradients, one forward pass serves both. The gradients wait in a file beside the journal, so that a
run that goes on has the same ones; it is removed when the run is over.

This is done only where it changes nothing: where the model was seen to answer with gradients as it
does without, bit for bit (:mod:`holdfast.engine.preflight`), and where the first stage of the first
threat begins so for every sample that is answered rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.attacks.base import Attack, Objective, Query
from holdfast.engine.cascade import Step, Terms, fitting
from holdfast.engine.journal import RowFile
from holdfast.threat import Access, Threat

if TYPE_CHECKING:
    from holdfast.engine.run import Context

_NAME = "opening.safetensors"


@dataclass(frozen=True, slots=True)
class Opening:
    """What the clean pass prepares: the first gradient of ``attack`` under ``threat``."""

    threat: str
    attack: Attack
    loss: Callable[..., Tensor]

    def query(self, x: Tensor, y: Tensor) -> Query:
        """The question about clean inputs."""
        return Query(x, Objective(self.loss, (y, torch.full_like(y, -1))))

    def write(
        self, context: Context, rows: Sequence[int], gradients: Tensor, is_right: Tensor
    ) -> Tensor:
        """Keep the gradients of samples that will be attacked; which ones they are ``(n,)``.

        One that is zero everywhere is not kept: a row of zeros means that there is none.
        """
        is_kept = is_right & gradients.flatten(1).any(1)
        chosen = is_kept.nonzero().squeeze(1)
        if len(chosen):
            _file(context).write([rows[i] for i in chosen.tolist()], gradients[chosen])
        return is_kept

    def read(
        self, context: Context, threat: str, step: Step, samples: Sequence[int]
    ) -> Tensor | None:
        """The gradients ``(n, *shape)``, zero where there is none; None where the stage is another.

        That is also the answer where the file was lost.
        """
        is_first = threat == self.threat and step.stage == 0 and step.attack == self.attack
        if not is_first or step.route is not None or not _path(context).exists():
            return None
        return _file(context).read(samples).to(context.model.device)


def opening(context: Context, threats: Sequence[Threat]) -> Opening | None:
    """What the clean pass can prepare; None where its forward pass cannot serve twice."""
    plan, model = context.plan, context.model
    is_plain = model.agrees_with_gradients and model.tuning.is_exact
    sees_gradients = model.access is Access.GRADIENTS and model.has_gradients
    is_for_all = not plan.goal.is_targeted and plan.verify in ("off", "auto")
    if not (threats and is_plain and sees_gradients and is_for_all):
        return None
    first = fitting(plan.resolved_stages, threats[0].norm, model.access)[0][0]
    loss = first.attack.opening
    if loss is None or first.stage != 0 or first.route is not None or first.terms != Terms():
        return None
    return Opening(threats[0].describe(), first.attack, loss)


def forget(context: Context) -> None:
    """Remove the file of a run that is over."""
    _path(context).unlink(missing_ok=True)


def _path(context: Context) -> Path:
    return context.journal.directory / _NAME


def _file(context: Context) -> RowFile:
    shape = tuple(context.data.shape)
    return context.journal.rows(_path(context), "gradient", len(context.data), shape)
