"""Many more steps still break samples: the attacks had not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.attacks.pgd import PGD
from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe

_FEW = 8


@final
@dataclass(frozen=True)
class StepCount(Check):
    """A long, plain attack on samples that the cascade did not break.

    Attributes:
        steps: Of the long attack.
        most: Share of the samples that may fall.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="step_count",
        title="more steps that still lower the accuracy",
        paper="Carlini et al. (2019), arXiv:1902.06705, section 4; indicator I2 of Pintor et al. "
        "(2022), arXiv:2106.09947",
    )

    steps: int = 100
    most: float = 0.1

    def look(self, probe: Probe) -> Doubt | None:
        """The share that falls."""
        path = probe.few(_FEW).attacked(PGD(steps=self.steps, loss="margin"))
        share = float((path.best > 0).float().mean())
        if share <= self.most:
            return None
        text = f"{self.steps} more steps break {share:.0%} of the samples that had survived"
        return Doubt(text, {"share_fooled": share}, ({"name": "restarts"},))
