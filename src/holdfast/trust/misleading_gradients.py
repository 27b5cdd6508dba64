"""Gradients that promise what does not come: held against the model's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.shattered_gradients import neighbours

_RANDOM = 4


@final
@dataclass(frozen=True)
class MisleadingGradients(Check):
    """Finite differences against gradients, at two distances.

    One step along the gradient, and as large steps in random directions: how much of the gain that
    the gradient promises comes, and does it beat the random ones?

    Attributes:
        shares: Lengths of the step in radii.
        least, most: Bounds of the median of real over promised gain.
        least_beaten: Share of samples where the gradient's step must win.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="misleading_gradients",
        title="gradients that disagree with the model's own answers",
        paper="Carlini et al. (2019), On evaluating adversarial robustness, arXiv:1902.06705, "
        "section 4: gradient against finite differences",
    )

    shares: tuple[float, float] = (1 / 16, 1 / 4)
    least: float = 0.25
    most: float = 1.6
    least_beaten: float = 0.7

    def look(self, probe: Probe) -> Doubt | None:
        """The ratio at both distances, and the share of samples where random steps do better."""
        if probe.is_counting or not bool(probe.gradients.any()):
            return None
        ratios = [self._ratio(probe, share) for share in self.shares]
        beaten = self._beaten(probe, self.shares[1])
        figures = dict(zip(("ratio_near", "ratio_far"), ratios, strict=True)) | {"beaten": beaten}
        if beaten < self.least_beaten:
            text = (
                "a step along the gradient does no better than random ones on "
                f"{1 - beaten:.0%} of the samples looked at"
            )
        elif not all(self.least <= ratio <= self.most for ratio in ratios):
            text = (
                "the model's answers change by "
                f"{ratios[0]:.1f} and {ratios[1]:.1f} times what its gradients promise, at "
                f"{self.shares[0]:g} and {self.shares[1]:g} of the allowed distance"
            )
        else:
            return None
        return Doubt(text, figures, neighbours(probe))

    def _ratio(self, probe: Probe, share: float) -> float:
        points = probe.stepped(probe.gradients, share)
        promised = ((points - probe.x) * probe.gradients).flatten(1).sum(1)
        real = probe.margins_at(points) - probe.margins
        seen = promised > 0
        return float((real / promised)[seen].median()) if bool(seen.any()) else 1.0

    def _beaten(self, probe: Probe, share: float) -> float:
        own = probe.margins_at(probe.stepped(probe.gradients, share))
        random = [
            probe.margins_at(probe.stepped(probe.random_direction(i), share))
            for i in range(_RANDOM)
        ]
        return float((own > torch.stack(random).amax(0)).float().mean())
