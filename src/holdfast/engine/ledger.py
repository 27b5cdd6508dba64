"""What the engine must remember of a run: the journal's records, folded into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from holdfast.record import AnyRecord, Attempt, Clean, Examined, Outcome, Proven, Radius, Spared

REUSED = -1
"""Stage of an attempt that took over another threat's adversarial input."""
PROOF = -2
"""Stage of a counterexample that the search for a proof came upon."""


@dataclass(slots=True)
class Standing:
    """Where every sample stands under one threat; arrays ``(n,)``.

    Attributes:
        position: Jobs of the sample's walk through the cascade that are over, or spared.
        broken_by: Stage that broke it; ``len(stages)`` or more where none did.
        is_stopped: Its budget ran out.
        is_verified: There is a proof that nothing breaks it.
        forward, backward: Passes of its search.
        margin: Largest margin met.
        distance, radius: Size of the accepted change, and its bisected bound; NaN where unknown.
        blind: By stage, backward passes and those whose gradient was zero or not finite.
        followed: Gradients that were followed in vain before the attempt that broke the sample.
        looks: How far the attacks can be trusted, look by look.
    """

    position: np.ndarray
    broken_by: np.ndarray
    is_stopped: np.ndarray
    is_verified: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    zero_gradients: np.ndarray
    rejected: np.ndarray
    margin: np.ndarray
    distance: np.ndarray
    radius: np.ndarray
    followed: np.ndarray
    blind: dict[int, tuple[int, int]] = field(default_factory=dict)
    looks: list[Examined] = field(default_factory=list)

    NOT_BROKEN = 1 << 20

    @classmethod
    def fresh(cls, n: int) -> Standing:
        """Nobody has been attacked."""
        zeros = [np.zeros(n, np.int64) for _ in range(6)]
        return cls(
            position=zeros[0],
            broken_by=np.full(n, cls.NOT_BROKEN, np.int64),
            is_stopped=np.zeros(n, bool),
            is_verified=np.zeros(n, bool),
            forward=zeros[1],
            backward=zeros[2],
            zero_gradients=zeros[3],
            rejected=zeros[4],
            margin=np.full(n, -np.inf),
            distance=np.full(n, np.nan),
            radius=np.full(n, np.nan),
            followed=zeros[5],
        )

    @property
    def is_broken(self) -> np.ndarray:
        """Whether an allowed change fools the model."""
        return self.broken_by < self.NOT_BROKEN

    def attempt(self, record: Attempt) -> None:
        """Take an attempt in."""
        i = record.sample
        if record.stage >= 0:
            self.position[i] += 1
        if record.outcome is Outcome.BROKEN:
            self.followed[i] = self.backward[i]
        self.forward[i] += record.forward
        self.backward[i] += record.backward
        self.zero_gradients[i] += record.zero_gradients
        self.rejected[i] += record.rejected
        backward, blind = self.blind.get(record.stage, (0, 0))
        self.blind[record.stage] = (backward + record.backward, blind + record.zero_gradients)
        self.margin[i] = max(self.margin[i], record.margin)
        if record.outcome is Outcome.BROKEN:
            self.broken_by[i] = record.stage
            self.distance[i] = np.nan if record.distance is None else record.distance
        self.is_stopped[i] |= record.outcome is Outcome.STOPPED


@dataclass(slots=True)
class Ledger:
    """The state of a run with ``n`` samples."""

    n: int
    is_known: np.ndarray
    is_correct: np.ndarray
    margin: np.ndarray
    goal: np.ndarray
    standings: dict[str, Standing] = field(default_factory=dict)

    @classmethod
    def fresh(cls, n: int) -> Ledger:
        """Nothing is known."""
        no = np.zeros(n, bool)
        return cls(n, no, no.copy(), np.full(n, -np.inf), np.full(n, -1, np.int64))

    def standing(self, threat: str) -> Standing:
        """Where the samples stand under ``threat``."""
        if threat not in self.standings:
            self.standings[threat] = Standing.fresh(self.n)
        return self.standings[threat]

    def fold(self, record: AnyRecord) -> None:
        """Take a record in; kinds that change no verdict are passed over."""
        if isinstance(record, Clean):
            i = record.sample
            self.is_known[i] = True
            self.is_correct[i] = record.prediction == record.y
            self.margin[i] = record.margin
            self.goal[i] = record.target
        elif isinstance(record, Attempt):
            self.standing(record.threat).attempt(record)
        elif isinstance(record, Spared):
            self.standing(record.threat).position[record.sample] += record.jobs
        elif isinstance(record, Examined):
            self.standing(record.threat).looks.append(record)
        elif isinstance(record, Proven):
            self.standing(record.threat).is_verified[record.sample] = True
        elif isinstance(record, Radius):
            self.standing(record.threat).radius[record.sample] = record.radius

    @property
    def clean_accuracy(self) -> float | None:
        """None until every sample is known."""
        return float(self.is_correct.mean()) if self.is_known.all() else None

    def robust_accuracy(self, threat: str, stages: Sequence[int] | None = None) -> float | None:
        """Share of samples that nothing has broken; none of these ``stages`` if given."""
        if not self.is_known.all():
            return None
        standing = self.standing(threat)
        is_broken = standing.is_broken
        if stages is not None:
            is_broken = (standing.broken_by < 0) | np.isin(standing.broken_by, list(stages))
        return float((self.is_correct & ~is_broken).mean())
