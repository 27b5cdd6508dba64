"""What a hardening says while it goes on; see :mod:`holdfast.events`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.events import Event


@dataclass(frozen=True, slots=True)
class Chosen(Event):
    """The plan: recipe, settings, and why; ``n_updates_done`` of an earlier sitting."""

    kind: ClassVar[str] = "chosen"
    recipe: str
    settings: dict[str, Any]
    reasons: tuple[str, ...]
    directory: str
    n_train: int
    n_validation: int
    n_updates_done: int = 0


@dataclass(frozen=True, slots=True)
class Training(Event):
    """Where the training stands, a few times per second at most.

    Attributes:
        epoch: Passes over the training data so far.
        progress: Share of the training done, in [0, 1].
        loss: Mean over the last updates.
        ramp: Share of the radius in use.
        clean_accuracy: Of the last validation; None before the first.
        robust_accuracy: Likewise, under the validation's attack at the full radius.
        seconds: So far, over all sittings.
        seconds_left: Of training.
    """

    kind: ClassVar[str] = "training"
    epoch: float
    progress: float
    loss: float
    learning_rate: float
    ramp: float
    clean_accuracy: float | None
    robust_accuracy: float | None
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Validated(Event):
    """The weights were tried on the validation samples; ``is_best``: they are the ones to beat."""

    kind: ClassVar[str] = "validated"
    epoch: float
    progress: float
    loss: float
    clean_accuracy: float
    robust_accuracy: float
    n: int
    is_best: bool
    seconds: float
    verified_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """An alarm took the training back to good weights, and on with another recipe or rate."""

    kind: ClassVar[str] = "rolled_back"
    code: str
    text: str
    epoch: float
    recipe: str
    seconds: float
