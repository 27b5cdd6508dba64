"""What a run says while it goes on: small frozen records, drawn by whoever listens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data, with its kind."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Started(Event):
    """A run begins, or goes on: ``n_resumed`` jobs were already in the journal."""

    kind: ClassVar[str] = "started"
    plan_id: str
    directory: str
    n_samples: int
    threats: tuple[str, ...]
    n_resumed: int = 0


@dataclass(frozen=True, slots=True)
class Found(Event):
    """Something a user should know of the model, the data or the run (see ``record.Finding``)."""

    kind: ClassVar[str] = "finding"
    code: str
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """Where the run stands, a few times per second at most.

    Attributes:
        threat: The threat at work; empty during checks and the clean pass.
        phase: ``checks``, ``clean``, the attack's label, or ``curve``.
        n_done: Samples that have left this phase.
        n_total: Samples that entered it.
        clean_accuracy: None until known.
        robust_accuracy: Fraction of all samples not broken so far; None until known.
        passes: Forward and backward passes of the run so far, over all samples.
        seconds: Since the run began.
    """

    kind: ClassVar[str] = "progress"
    threat: str
    phase: str
    n_done: int
    n_total: int
    clean_accuracy: float | None
    robust_accuracy: float | None
    passes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PhaseDone(Event):
    """A phase has ended for all samples; ``robust_accuracy`` is that after it."""

    kind: ClassVar[str] = "phase"
    threat: str
    phase: str
    robust_accuracy: float | None
    clean_accuracy: float | None
    passes_per_sample: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The run ended before its plan did, and why (``budget`` or ``interrupted``)."""

    kind: ClassVar[str] = "stopped"
    reason: str
    n_unfinished: int


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The run is over; the journal in ``directory`` holds all of it."""

    kind: ClassVar[str] = "finished"
    directory: str
    seconds: float
