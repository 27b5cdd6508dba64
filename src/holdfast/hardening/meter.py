"""What a hardening costs beside time: memory and, where the machine tells, energy."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

_RAPL = Path("/sys/class/powercap")


class Meter:
    """Runs from its making until it is read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began, self._joules = time.monotonic(), _joules(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def read(self) -> dict[str, float | None]:
        """Seconds, peak memory in MB, and energy in kJ where the machine tells."""
        now = _joules(self._device)
        known = now is not None and self._joules is not None and now >= self._joules
        return {
            "seconds": self.seconds,
            "peak_memory_mb": _peak_memory_mb(self._device),
            "energy_kj": (now - self._joules) / 1000 if known else None,  # type: ignore[operator]
        }


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _joules(device: torch.device) -> float | None:
    """The counter of the card, or of the processor's packages (all programs together)."""
    if device.type == "cuda":
        return _card_joules(device)
    found = [_number(path / "energy_uj") for path in _RAPL.glob("intel-rapl:?")]
    known = [value for value in found if value is not None]
    return sum(known) / 1e6 if known else None


def _card_joules(device: torch.device) -> float | None:
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # no library, no permission, no counter: the machine does not tell
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
