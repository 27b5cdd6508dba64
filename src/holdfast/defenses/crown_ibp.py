"""CROWN-IBP (Zhang et al., 2020, arXiv:1906.06316).

As IBP, but the bound is ``(1 - b) IBP + b CROWN-IBP``, where the latter takes intervals inside the
network and one linear bound from its end to its input. b goes from 1 to its end as the radius
is ramped: the tighter bound makes the beginning stable, the looser one fits intervals at the end.

Differences from the paper: as for :mod:`holdfast.defenses.ibp`; a linear ramp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from holdfast.defenses import _certified
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class CROWNIBP(Recipe):
    """Clean cross-entropy and that of the worst logits within mixed bounds.

    Attributes:
        kappa: Last weight of the clean part.
        beta: Last weight of the linear bound: 0 ends as IBP, and then saves its cost.
        radius: Training radius in units of the threat's.
    """

    card: ClassVar[Card] = Card(
        name="crown_ibp",
        title="certified training with linear bounds at first, interval bounds in the end",
        paper="Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh (2020), Towards Stable "
        "and Efficient Training of Verifiably Robust Neural Networks, arXiv:1906.06316",
        norms=frozenset({"linf"}),
        is_certified=True,
    )

    kappa: float = 0.5
    beta: float = 0.0
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("crown_ibp", "kappa", self.kappa, 0, 1)
        require("crown_ibp", "beta", self.beta, 0, 1)
        require("crown_ibp", "radius", self.radius, 0)

    @property
    def passes(self) -> float:
        """Those of IBP, and a backward pass for every class."""
        return 6 + 20

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """Both parts, weighed by how far the radius is ramped."""
        linear = 1 - (1 - self.beta) * step.ramp
        robust = _certified.bounded(step, batch, batch.x, self.radius, linear).loss
        return _certified.mixed(step, batch, robust, self.kappa)

    def ramp(self, progress: float, share: float) -> float:
        """A warm-up at radius 0, then straight up."""
        return _certified.slow_ramp(progress, share)
