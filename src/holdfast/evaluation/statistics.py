"""How sure a measured rate is: exact intervals, and an exact test of two audits on one data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv

CONFIDENCE = 0.95


def clopper_pearson(
    k: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact interval of a probability after ``k`` successes in ``n`` independent trials.

    Every probability outside would make a result as extreme as ``k`` rarer than
    ``(1 - confidence) / 2``; coverage is at least ``confidence`` for every true probability.
    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934).

    Args:
        k: Successes, of any shape that broadcasts against ``n``.
        n: Trials; where 0, nothing is known and the interval is [0, 1].
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: where ``k`` is not within 0..n, or ``confidence`` not within (0, 1).
    """
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a number between 0 and 1, e.g. 0.95.")
    if bool(((k < 0) | (k > n)).any()):
        raise ValueError("There cannot be more successes than trials, nor fewer than none.")
    tail = (1 - confidence) / 2
    inner_low, inner_high = np.maximum(k, 1), np.maximum(n - k, 1)  # outside: fixed below
    lower = np.where(k == 0, 0.0, betaincinv(inner_low, n - k + 1, tail))
    upper = np.where(k == n, 1.0, betaincinv(k + 1, inner_high, 1 - tail))
    return lower, upper


@dataclass(frozen=True, slots=True)
class Rate:
    """``k`` of ``n`` samples, with the exact interval of the probability behind it.

    Attributes:
        value: ``k / n``; NaN where ``n`` is 0.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        n: Samples looked at.
        k: Samples of the kind counted.
        confidence: Coverage of the interval.
    """

    value: float
    lower: float
    upper: float
    n: int
    k: int
    confidence: float = CONFIDENCE

    @classmethod
    def of(cls, k: int, n: int, confidence: float = CONFIDENCE) -> Rate:
        """The rate of ``k`` in ``n``; see :func:`clopper_pearson`."""
        lower, upper = clopper_pearson(k, n, confidence)
        return cls(k / n if n else math.nan, float(lower), float(upper), n, k, confidence)

    def __str__(self) -> str:
        if not self.n:
            return "not known (n=0)"
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}] (n={self.n})"

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the value is None where ``n`` is 0."""
        return {**asdict(self), "value": self.value if self.n else None}


@dataclass(frozen=True, slots=True)
class Paired:
    """Two audits of the same samples: is the second better, or is it chance?

    Attributes:
        n: Samples compared.
        gained: Samples that only the second gets right.
        lost: Samples that only the first gets right.
        p_value: Probability of a split at least this uneven if neither were better (two-sided).
    """

    n: int
    gained: int
    lost: int
    p_value: float

    @property
    def difference(self) -> float:
        """Rate of the second minus rate of the first."""
        return (self.gained - self.lost) / self.n if self.n else math.nan

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} ({self.gained} gained, {self.lost} lost of {self.n}, "
            f"p={self.p_value:.2g})"
        )


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact test of two paired series of right and wrong.

    Only samples on which the two disagree count; under the null hypothesis each of them falls to
    either side like a fair coin. McNemar, Psychometrika 12 (1947), with the exact binomial tail.

    Raises:
        ValueError: where the two are not equally long.
    """
    if len(first) != len(second):
        raise ValueError(f"The two series have {len(first)} and {len(second)} entries.")
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    p_value = min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
    return Paired(len(first), gained, lost, p_value)
