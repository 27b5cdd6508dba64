"""Shattered gradients: those of neighbours have nothing to do with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe

_DRAWS = 3


@final
@dataclass(frozen=True)
class ShatteredGradients(Check):
    """The cosine between the gradient at an input and at random inputs near it.

    Attributes:
        near, least_near: Distance in radii, and the median cosine below which there is a doubt.
        far, least_far: The same further out.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="shattered_gradients",
        title="gradients that change direction from each point to the next",
        paper="Balduzzi et al. (2017), arXiv:1702.08591; Athalye, Carlini and Wagner (2018), "
        "arXiv:1802.00420",
    )

    near: float = 1 / 16
    least_near: float = 0.5
    far: float = 1 / 4
    least_far: float = 0.3

    def look(self, probe: Probe) -> Doubt | None:
        """Median cosines at two distances; zero gradients are another check's."""
        near, far = self._cosine(probe, self.near), self._cosine(probe, self.far)
        if near >= self.least_near and far >= self.least_far:
            return None
        text = (
            "gradients of neighbouring points have nothing in common (cosine "
            f"{near:.2f} at {self.near:g} of the allowed distance, {far:.2f} at {self.far:g})"
        )
        return Doubt(text, {"cosine_near": near, "cosine_far": far}, neighbours(probe))

    def _cosine(self, probe: Probe, share: float) -> float:
        own = probe.gradients.flatten(1)
        seen = own.abs().amax(1) > 0
        if not bool(seen.any()):
            return 1.0
        cosines = [
            F.cosine_similarity(own, probe.gradients_at(probe.near(share, number)).flatten(1))
            for number in range(_DRAWS)
        ]
        return float(torch.stack(cosines).mean(0)[seen].median())


def neighbours(probe: Probe, draws: int = 8) -> tuple[dict[str, Any], ...]:
    """Averages over neighbours at two distances, or over many noisy steps.

    None without samples to try them.
    """
    if not len(probe):
        return ()
    sizes = (_half_width(probe, 1 / 4), _half_width(probe, 1 / 16))
    routes = tuple({"name": "neighbours", "draws": draws, "size": size} for size in sizes)
    return routes if probe.is_counting else (*routes, {"name": "annealed"})


def _half_width(probe: Probe, share: float) -> float:
    """Half width of uniform noise that is about ``share`` of the radius long."""
    radius, size = float(probe.allowed.radius.median()), probe.x[0].numel()
    geometry = getattr(probe.allowed, "geometry", "linf")
    if geometry == "l2":
        radius *= (3 / size) ** 0.5
    elif geometry == "l1":
        radius *= 2 / size
    elif geometry == "l0":
        radius = 0.1 * probe.model.domain.width
    return round(share * radius, 9)
