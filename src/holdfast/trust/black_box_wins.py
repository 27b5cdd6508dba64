"""An attack that sees less should never find more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from holdfast.engine.cascade import Step
from holdfast.engine.suspicion import n_beyond_gradients
from holdfast.threat import Access
from holdfast.trust.base import LATE, Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.shattered_gradients import neighbours


@final
@dataclass(frozen=True)
class BlackBoxWins(Check):
    """Samples broken by attacks that see less after those that follow gradients had failed.

    Attacks that only begin without gradients count as well
    (:attr:`~holdfast.attacks.base.Card.sees_less`), once gradients have had a fair chance. Where
    one of those found all of them, it is itself the way out, and no other is proposed.

    In l0 it is no sign: changes are as large as the domain, so gradients at x say little of them,
    and random search finds more on sound models as well (Croce et al., 2022, arXiv:2006.12834).

    Attributes:
        most: Share of the samples that are right unchanged.
        most_samples: And their number.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="black_box_wins",
        title="an attack that searches without gradients beats those that follow them",
        paper="Carlini et al. (2019), arXiv:1902.06705, section 4; Croce and Hein (2020), "
        "arXiv:2003.01690",
        round=LATE,
        needs_samples=False,
    )

    most: float = 0.005
    most_samples: int = 1

    def look(self, probe: Probe) -> Doubt | None:
        """How many samples only they broke."""
        if probe.is_counting:
            return None
        weak = [s for s in probe.steps if s.attack.card.sees_less]
        count = n_beyond_gradients(probe.steps, probe.standing)
        share = count / max(1, probe.n_correct)
        if count <= self.most_samples or share <= self.most:
            return None
        text = (
            f"searching without gradients broke {count} samples ({share:.1%}) that all attacks "
            "which follow gradients had missed: the model's gradients mislead"
        )
        figures = {"n_broken": float(count), "share": share}
        if not _broken(probe, [s for s in weak if s.attack.card.access is not Access.GRADIENTS]):
            return Doubt(text, figures)
        remedies = ({"name": "restarts"}, *neighbours(probe), {"name": "surrogate"})
        return Doubt(text, figures, remedies)


def _broken(probe: Probe, steps: Sequence[Step]) -> int:
    """Samples that these stages broke."""
    return int(np.isin(probe.standing.broken_by, [s.stage for s in steps]).sum())
