"""An attack that may change everything must always win."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.pgd import PGD
from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import PATH_STEPS, Probe
from holdfast.trust.shattered_gradients import neighbours

_FEW = 16


@final
@dataclass(frozen=True)
class Unbounded(Check):
    """A short attack with the whole domain as its radius.

    Attributes:
        least: Share of the samples that must fall.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="unbounded",
        title="an attacker without limits who does not always win",
        paper="Carlini et al. (2019), arXiv:1902.06705, section 4; indicator I6 of Pintor et al. "
        "(2022), arXiv:2106.09947",
    )

    least: float = 0.9

    def look(self, probe: Probe) -> Doubt | None:
        """The share that falls."""
        few = probe.few(_FEW)
        share = fooled(few, whole(few))
        if share >= self.least:
            return None
        text = (
            f"an attacker who may change the whole input wins on {share:.0%} of the samples only; "
            "it should be all"
        )
        return Doubt(text, {"share_fooled": share}, neighbours(probe))


def whole(probe: Probe) -> Tensor:
    """The radius that allows every input of the domain ``(m,)``."""
    size, width = probe.x[0].numel(), probe.model.domain.width
    geometry = getattr(probe.allowed, "geometry", "linf")
    radius = {"l2": width * size**0.5, "l1": width * size, "l0": float(size)}.get(geometry, width)
    return torch.full_like(probe.allowed.radius, radius)


def fooled(probe: Probe, radius: Tensor) -> float:
    """Share of samples that a short attack of this size fools."""
    attack = PGD(steps=PATH_STEPS, loss="margin")
    return float((probe.attacked(attack, radius=radius).best > 0).float().mean())
