"""How much of a training is done: by updates, or by seconds over all sittings."""

from __future__ import annotations

import time
from typing import Any

from holdfast.hardening.settings import Settings


class Clock:
    """Progress in [0, 1], which schedules, ramps and the end hang on.

    Bounded by seconds, the schedule reaches its end on time however fast the machine is just now.

    Args:
        settings: The bounds.
        spent: Seconds of earlier sittings.
        fabric: Where there are several processes, the first one's time counts for all.
    """

    def __init__(self, settings: Settings, spent: float = 0.0, fabric: Any = None) -> None:
        self._settings, self._before, self._fabric = settings, spent, fabric
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far, earlier sittings included."""
        return self._before + time.monotonic() - self._began

    def progress(self, n_updates: int) -> float:
        """Share of the training that is done after so many updates."""
        if self._settings.n_updates is not None:
            return min(1.0, n_updates / self._settings.n_updates)
        assert self._settings.seconds is not None
        p = min(1.0, self.spent / self._settings.seconds)
        if self._fabric is not None and self._fabric.world_size > 1:
            p = float(self._fabric.broadcast(p))
        return p

    def left(self, n_updates: int) -> float:
        """Seconds that the rest takes, as far as can be told."""
        p = self.progress(n_updates)
        if self._settings.seconds is not None:
            return max(0.0, self._settings.seconds - self.spent)
        return self.spent * (1 - p) / p if p > 0 else float("inf")
