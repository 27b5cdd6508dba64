"""The result under one threat, sample by sample, and every rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from holdfast.evaluation.statistics import Rate, clopper_pearson
from holdfast.record import Examined, Verdict
from holdfast.reports._trust import Trust, trust_in

SAFE = (Verdict.VERIFIED, Verdict.UNKNOWN, Verdict.UNFINISHED)
"""Verdicts of samples that nothing has broken so far."""
COLUMNS = (
    "verdict",
    "broken_by",
    "radius",
    "margin",
    "loss",
    "confidence",
    "prediction",
    "prediction_confidence",
    "forward",
    "backward",
)
"""The columns of :class:`ThreatResult` that are its own."""


class Frozen(BaseModel):
    """Base of what a report is made of: plain data that survives JSON unchanged."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), ser_json_inf_nan="strings"
    )


class Samples(Frozen):
    """The unchanged samples in order of their number; all columns are equally long."""

    sample: tuple[int, ...] = ()
    y: tuple[int, ...] = ()
    prediction: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    """Class a targeted attacker wants; -1: any wrong one."""
    confidence: tuple[float, ...] = ()
    confidence_predicted: tuple[float, ...] = ()
    margin: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Which samples the model gets right without any attack."""
        return np.asarray(self.prediction, dtype=int) == np.asarray(self.y, dtype=int)


class StageResult(Frozen):
    """What one attack of the cascade did under one threat.

    ``n_surviving`` of ``n`` samples are right and unbroken after it; passes are sums over samples.
    """

    stage: int
    """Position in the cascade; -1: inputs found under another threat were tried first."""
    attack: str
    access: str = ""
    """What the attack must see of the model; empty where the attack is not installed."""
    sees_less: bool = False
    """Whether it begins without gradients: what it breaks is a sign that they mislead."""
    n: int
    n_entered: int
    n_broken: int
    n_surviving: int
    n_stopped: int = 0
    """Samples whose own budget of passes or queries ran out here."""
    forward: int
    backward: int
    median_passes: float | None = None
    """Passes spent on a sample, earlier stages included, until this attack broke it: the median."""
    n_zero_gradients: int = 0

    @property
    def robust_accuracy(self) -> Rate:
        """Samples right and unbroken after this stage."""
        return Rate.of(self.n_surviving, self.n)


@dataclass(frozen=True, slots=True)
class ClassResult:
    """The samples of one class under one threat, or under all."""

    label: int
    clean_accuracy: Rate
    robust_accuracy: Rate


@dataclass(frozen=True, slots=True)
class Curve:
    """An upper bound on accuracy against the size of the change, as a step function.

    ``accuracy[i]`` holds from ``eps[i]`` up to the next entry. It is an upper bound because the
    smallest change known to break a sample is an upper bound on the smallest that exists.

    Attributes:
        eps: Sizes ``(m,)``, rising from 0 to the threat's.
        accuracy: Fraction of samples right and unbroken at that size ``(m,)``.
        lower: Lower ends of the exact 95% intervals, size by size ``(m,)``.
        upper: Upper ends ``(m,)``.
    """

    eps: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    def at(self, eps: float) -> float:
        """The bound for changes of size ``eps``."""
        return float(self.accuracy[max(0, int(np.searchsorted(self.eps, eps, "right")) - 1)])


class ThreatResult(Frozen):
    """Every sample's fate under one threat; the columns follow the order of :class:`Samples`."""

    threat: str
    norm: str
    eps: float | None
    """The radius; None where the threat is not a ball of one size."""
    y: tuple[int, ...] = ()
    verdict: tuple[Verdict, ...] = ()
    broken_by: tuple[int | None, ...] = ()
    """Stage that broke the sample; -1: an input found under another threat; None: nothing did."""
    radius: tuple[float | None, ...] = ()
    """Smallest change known to break the sample; 0 where it is wrong unchanged."""
    margin: tuple[float | None, ...] = ()
    """Worst met: largest wrong logit minus the label's; None where nothing was tried."""
    loss: tuple[float | None, ...] = ()
    confidence: tuple[float | None, ...] = ()
    prediction: tuple[int, ...] = ()
    """Answer to the adversarial input; -1: there is none."""
    prediction_confidence: tuple[float, ...] = ()
    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    stages: tuple[StageResult, ...] = ()
    skipped: tuple[str, ...] = ()
    """Attacks of the plan that cannot work here, each with the reason."""
    looks: tuple[Examined, ...] = ()
    """Whether the attacks were misled, look by look."""
    curve_forward: int = 0
    n_rejected: int = 0

    def count(self, *verdicts: Verdict) -> int:
        """Number of samples with one of these verdicts."""
        return sum(v in verdicts for v in self.verdict)

    @property
    def n(self) -> int:
        """Samples looked at."""
        return len(self.verdict)

    @property
    def n_right(self) -> int:
        """Samples that are right unchanged."""
        return self.n - self.count(Verdict.WRONG)

    @cached_property
    def trust(self) -> Trust:
        """How far the robust accuracy can be trusted."""
        return trust_in(self)

    @property
    def n_unfinished(self) -> int:
        """Samples that never got all their attacks."""
        return self.count(Verdict.UNFINISHED)

    @property
    def n_stopped(self) -> int:
        """Samples whose own budget ran out before the cascade did."""
        return sum(stage.n_stopped for stage in self.stages)

    @property
    def is_attacked(self) -> bool:
        """Whether any attack was run; without one, an unbroken sample means nothing."""
        return any(stage.n_entered for stage in self.stages)

    @cached_property
    def robust_accuracy(self) -> Rate:
        """Samples right and unbroken: an upper bound on the true robust accuracy."""
        return Rate.of(self.count(*SAFE), self.n)

    @cached_property
    def verified_accuracy(self) -> Rate:
        """Samples with a proof: a lower bound on the true robust accuracy."""
        return Rate.of(self.count(Verdict.VERIFIED), self.n)

    @cached_property
    def attack_success_rate(self) -> Rate:
        """Broken samples among those that are right unchanged."""
        broken = self.count(Verdict.BROKEN)
        return Rate.of(broken, broken + self.count(*SAFE))

    @cached_property
    def classes(self) -> tuple[ClassResult, ...]:
        """Results per class, in the order of labels."""
        return per_class(self.y, self.verdict)

    @property
    def worst_class(self) -> ClassResult | None:
        """The class most surely weak, see :func:`weakness`; None without samples."""
        return min(self.classes, key=weakness, default=None)

    @cached_property
    def curve(self) -> Curve:
        """Accuracy against the size of the change; see :class:`Curve`."""
        known = np.asarray([r for r in self.radius if r is not None], dtype=float)
        limit = math.inf if self.eps is None else self.eps
        steps, counts = np.unique(np.clip(known, 0.0, limit), return_counts=True)
        eps = np.unique(np.concatenate([[0.0], steps, [limit] if math.isfinite(limit) else []]))
        broken = np.zeros(len(eps))
        broken[np.searchsorted(eps, steps)] = counts
        alive = self.n - np.cumsum(broken)
        lower, upper = clopper_pearson(alive, np.full(len(eps), self.n))
        return Curve(eps, alive / max(self.n, 1), lower, upper)

    @property
    def median_radius(self) -> float | None:
        """Change that suffices for half of the samples that are right unchanged.

        None where fewer than half of them are broken: then it is larger than the threat's size.
        """
        pairs = zip(self.radius, self.verdict, strict=True)
        sizes = [math.inf if r is None else r for r, v in pairs if v != Verdict.WRONG]
        middle = sorted(sizes)[(len(sizes) - 1) // 2] if sizes else math.inf
        return middle if math.isfinite(middle) else None

    @property
    def passes_per_sample(self) -> float:
        """Forward and backward passes of the attacks, per sample looked at."""
        return (sum(self.forward) + sum(self.backward)) / max(self.n, 1)


def weakness(result: ClassResult) -> tuple[float, float, int]:
    """Sorts classes by the upper end of the interval: few samples prove little."""
    rate = result.robust_accuracy
    return rate.upper, rate.value, result.label


def per_class(y: Sequence[int], verdicts: Sequence[Verdict]) -> tuple[ClassResult, ...]:
    """Results per class that occurs in ``y``, in the order of labels."""
    labels = np.asarray(y, dtype=int)
    safe = np.asarray([v in SAFE for v in verdicts], dtype=bool)
    correct = np.asarray([v != Verdict.WRONG for v in verdicts], dtype=bool)
    results = []
    for label in np.unique(labels):
        own = labels == label
        n, right, unbroken = int(own.sum()), int(correct[own].sum()), int(safe[own].sum())
        results.append(ClassResult(int(label), Rate.of(right, n), Rate.of(unbroken, n)))
    return tuple(results)


def worst_of(results: Sequence[Sequence[Verdict]]) -> tuple[Verdict, ...]:
    """Each sample's verdict against an attacker who may use any of several threats."""
    order = [Verdict.WRONG, Verdict.BROKEN, Verdict.UNFINISHED, Verdict.UNKNOWN, Verdict.VERIFIED]
    return tuple(min(row, key=order.index) for row in zip(*results, strict=True))
