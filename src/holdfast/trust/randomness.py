"""A model that answers differently when it is asked twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe


@final
@dataclass(frozen=True)
class Randomness(Check):
    """The same inputs twice: how far apart are the answers, how often do they disagree?

    Attributes:
        draws: Answers that gradients are averaged over then.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="randomness",
        title="answers that change by themselves",
        paper="Athalye, Carlini and Wagner (2018), arXiv:1802.00420; Athalye et al. (2018), "
        "arXiv:1707.07397",
        is_cause=True,
    )

    draws: int = 16

    def look(self, probe: Probe) -> Doubt | None:
        """Two answers."""
        if not probe.model.is_random:
            return None
        first, second = (probe.model.logits(probe.x) for _ in range(2))
        size = first.std().clamp_min(1e-12)
        share = float((first - second).abs().mean() / size)
        text = "the model answers at random, so that a gradient, and an answer, is one of many"
        remedies: tuple[dict[str, Any], ...] = ({"name": "expectation", "draws": self.draws},)
        if not probe.is_counting:
            remedies += ({"name": "annealed"},)
        return Doubt(text, {"relative_difference": share}, remedies)
