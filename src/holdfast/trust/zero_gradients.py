"""Gradients that are exactly zero: the attacks could not see where to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe


@final
@dataclass(frozen=True)
class ZeroGradients(Check):
    """Counts gradients of the margin that vanish, at clean inputs and at random allowed ones.

    The margin does not saturate as cross-entropy does: where its gradient is zero, the model itself
    is flat there.

    Attributes:
        share: Of zero gradients, from which on there is a doubt.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="zero_gradients",
        title="gradients that are exactly zero",
        paper="Athalye, Carlini and Wagner (2018), arXiv:1802.00420; indicator I4 of Pintor et al. "
        "(2022), arXiv:2106.09947",
    )

    share: float = 0.1

    def look(self, probe: Probe) -> Doubt | None:
        """The share of zeros."""
        random = probe.gradients_at(probe.near(1.0))
        share = float((_is_zero(probe.gradients) | _is_zero(random)).float().mean())
        if share < self.share:
            return None
        remedies = ({"name": "surrogate"},)
        text = f"the gradient is exactly zero on {share:.0%} of the samples looked at"
        return Doubt(text, {"share_zero": share}, remedies)


def _is_zero(gradients: Tensor) -> Tensor:
    return gradients.flatten(1).abs().amax(1) == 0
