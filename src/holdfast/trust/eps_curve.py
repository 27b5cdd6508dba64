"""Accuracy that does not fall as the allowed change grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.shattered_gradients import neighbours
from holdfast.trust.unbounded import fooled, whole

_FEW = 16


@final
@dataclass(frozen=True)
class EpsCurve(Check):
    """A short attack with a radius halfway (geometrically) to the whole domain.

    Attributes:
        least: Share of the samples that must fall.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="eps_curve",
        title="accuracy that does not fall with the size of the change",
        paper="Carlini et al. (2019), arXiv:1902.06705, section 4",
    )

    least: float = 0.5

    def look(self, probe: Probe) -> Doubt | None:
        """The share that falls."""
        few = probe.few(_FEW)
        radius = (few.allowed.radius * whole(few)).sqrt()
        if few.is_counting:
            radius = radius.round()
        share = fooled(few, radius)
        if share >= self.least:
            return None
        times = float((radius / few.allowed.radius.clamp_min(1e-12)).median())
        text = f"changes {times:.1f} times as large break {share:.0%} of the samples only"
        return Doubt(text, {"share_fooled": share, "times": times}, neighbours(probe))
