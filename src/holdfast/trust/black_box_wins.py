"""An attack that sees less should never find more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from holdfast.threat import Access
from holdfast.trust.base import LATE, Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.shattered_gradients import neighbours


@final
@dataclass(frozen=True)
class BlackBoxWins(Check):
    """Samples broken by attacks without gradients after all those with gradients had failed.

    Attributes:
        most: Share of the samples that are right unchanged.
        most_samples: And their number.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="black_box_wins",
        title="an attack that sees only scores beats those that see gradients",
        paper="Carlini et al. (2019), arXiv:1902.06705, section 4; Croce and Hein (2020), "
        "arXiv:2003.01690",
        round=LATE,
        needs_samples=False,
    )

    most: float = 0.005
    most_samples: int = 1

    def look(self, probe: Probe) -> Doubt | None:
        """How many samples only they broke."""
        weak = [s.stage for s in probe.steps if s.attack.card.access is not Access.GRADIENTS]
        count = int(np.isin(probe.standing.broken_by, weak).sum())
        share = count / max(1, probe.n_correct)
        if count <= self.most_samples or share <= self.most:
            return None
        text = (
            f"an attack that sees only scores broke {count} samples ({share:.1%}) that all "
            "gradient attacks had missed: the model's gradients mislead"
        )
        remedies = ({"name": "restarts"}, *neighbours(probe), {"name": "surrogate"})
        return Doubt(text, {"n_broken": float(count), "share": share}, remedies)
