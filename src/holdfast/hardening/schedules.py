"""The learning rate as a function of progress: share of the peak at ``p`` in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

from holdfast.errors import PlanError

_DROPS = ((0.5, 0.1), (0.75, 0.01))  # Rice, Wong and Kolter (2020): at half and three quarters


def cyclic(p: float, peak_at: float) -> float:
    """Linear from 0 up to the peak and down to 0 again (Wong et al., 2020)."""
    return p / peak_at if p < peak_at else (1 - p) / (1 - peak_at)


def cosine(p: float, peak_at: float) -> float:
    """A linear start over the first tenth of the way to the peak, then half a cosine."""
    warm = 0.1 * peak_at
    return p / warm if p < warm else 0.5 * (1 + math.cos(math.pi * (p - warm) / (1 - warm)))


def piecewise(p: float, peak_at: float) -> float:
    """The peak, a tenth of it from half of the training, a hundredth from three quarters."""
    return min([1.0, *(share for at, share in _DROPS if p >= at)])


def constant(p: float, peak_at: float) -> float:
    """The peak throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cyclic": cyclic,
    "cosine": cosine,
    "piecewise": piecewise,
    "constant": constant,
}


def learning_rate_share(name: str, p: float, peak_at: float, restart: float | None) -> float:
    """Share of the peak at progress ``p``; after a roll-back at ``restart``, linearly down to 0.

    Raises:
        PlanError: for an unknown schedule.
    """
    if name not in SCHEDULES:
        raise PlanError(f"Unknown schedule {name!r}. Use one of: {', '.join(SCHEDULES)}.")
    p = min(1.0, max(0.0, p))
    if restart is not None and restart < 1:
        return (1 - p) / (1 - restart)
    return max(0.0, SCHEDULES[name](p, peak_at))
