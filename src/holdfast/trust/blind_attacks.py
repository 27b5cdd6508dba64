"""Attacks of the cascade that met no gradients: what they did not break says little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe


@final
@dataclass(frozen=True)
class BlindAttacks(Check):
    """Counts the gradients that every stage met which were zero or not finite.

    Attributes:
        share: Of them, from which on a stage counts as blind.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="blind_attacks",
        title="attacks that met zero gradients all along",
        paper="Indicator I4 of Pintor et al. (2022), arXiv:2106.09947",
        is_cause=True,
        needs_samples=False,
    )

    share: float = 0.1

    def look(self, probe: Probe) -> Doubt | None:
        """Stage by stage, from the records."""
        labels = {step.stage: step.label for step in probe.steps if step.route is None}
        shares = {
            stage: blind / backward
            for stage, (backward, blind) in probe.standing.blind.items()
            if backward and stage in labels
        }
        worst = {stage: share for stage, share in shares.items() if share >= self.share}
        if not worst:
            return None
        names = " and ".join(labels[stage] for stage in sorted(worst)[:2])
        share = max(worst.values())
        text = f"{share:.0%} of the gradients that {names} met were zero"
        return Doubt(text, {"share_zero": share}, (), tuple(sorted(worst)))
