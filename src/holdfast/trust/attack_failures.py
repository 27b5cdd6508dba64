"""Indicators that an attack itself has failed, read off the course of a short one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.shattered_gradients import neighbours


@final
@dataclass(frozen=True)
class AttackFailures(Check):
    """Does the loss climb, and has it stopped climbing at the end?

    Of the six indicators of Pintor et al., I1 (a success on the way that is not reported) cannot
    occur here, since every point is judged; I4 (zero gradients), I5 (no transfer) and I6
    (unbounded) are checks of their own. These are I2, the break-point of the loss curve, and I3,
    a loss that moves the wrong way.

    Attributes:
        most_falling: Share of steps on which the margin may fall.
        most_late: Share of the whole gain that may come in the second half.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="attack_failures",
        title="attacks that do not climb, or have not arrived",
        paper="Pintor et al. (2022), Indicators of attack failure, arXiv:2106.09947",
    )

    most_falling: float = 0.4
    most_late: float = 0.35

    def look(self, probe: Probe) -> Doubt | None:
        """The course of a short attack."""
        margins = probe.path.margins
        size = margins.abs().mean(0).clamp_min(1e-12)
        falls = (margins[1:] < margins[:-1] - 1e-5 * size).float().mean(0)
        falling = float(falls.median())
        middle = margins[: len(margins) // 2].amax(0)
        gain = (margins.amax(0) - margins[0]).clamp_min(1e-12)
        late = float(((margins.amax(0) - middle) / gain).median())
        figures = {"falling": falling, "late": late}
        if falling > self.most_falling:
            text = (
                f"the attack's own loss falls on {falling:.0%} of its steps, where it should rise"
            )
            return Doubt(text, figures, neighbours(probe))
        if late > self.most_late:
            text = f"{late:.0%} of what an attack gains comes in the second half of its steps"
            return Doubt(text, figures, (*neighbours(probe), {"name": "restarts"}))
        return None
