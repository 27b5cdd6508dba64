"""Where a training stands: what a checkpoint remembers beside tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from holdfast.hardening.validation import Score, Watch


@dataclass(slots=True)
class State:
    """Numbers that move on with every update.

    Attributes:
        index: Updates made.
        epoch: Passes over the training data begun, from 0.
        position: Batches of this epoch that are done.
        passes: Forward and backward passes of single samples, crafting included.
        seconds: Over all sittings.
        n_safer: How often a safer recipe was taken.
        n_rollbacks: How often the training went back.
        rate_scale: Factor of the learning rate, lowered by alarms.
        ramp_share: Of the settings, raised by alarms.
        origin: Progress at which the ramp began.
        restart: Progress at which the schedule began anew after a roll-back; None: never.
        best: Score of the weights that are returned if nothing better comes.
        good: Watch of the last good weights.
        history: Scores of all validations.
        told: Codes of alarms told already.
        validated: Updates made when the weights were validated last.
        is_done: Whether the training reached its end.
    """

    index: int = 0
    epoch: int = 0
    position: int = 0
    passes: float = 0.0
    seconds: float = 0.0
    n_safer: int = 0
    n_rollbacks: int = 0
    rate_scale: float = 1.0
    ramp_share: float = 0.5
    origin: float = 0.0
    restart: float | None = None
    best: Score | None = None
    good: Watch | None = None
    history: list[Score] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    validated: int = -1
    is_done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> State:
        """What :meth:`to_dict` gave."""
        content = dict(content)
        content["best"] = Score(**content["best"]) if content["best"] else None
        content["good"] = Watch(**content["good"]) if content["good"] else None
        content["history"] = [Score(**score) for score in content["history"]]
        return cls(**content)
