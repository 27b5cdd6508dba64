"""Interval bound propagation (Gowal et al., 2018, arXiv:1810.12715).

``min_w E [kappa CE(f(x), y) + (1 - kappa) CE(worst logits, y)]`` the worst logits being those that
interval bounds allow over the whole ball. The bounds cost two ordinary passes. The radius is
ramped, and kappa goes from 1 to its last value as it grows.

Differences from the paper: batch norm is bounded with its stored statistics (as the deployed model
has); no special initialisation, so deep networks may need one trained before.
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
class IBP(Recipe):
    """Clean cross-entropy and that of the worst logits within interval bounds.

    Attributes:
        kappa: Last weight of the clean part; 0.5 in the paper.
        radius: Training radius in units of the threat's: slightly above 1 often proves more.
    """

    card: ClassVar[Card] = Card(
        name="ibp",
        title="train the interval bounds themselves: robustness that can be proven cheaply",
        paper="Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann and Kohli "
        "(2018), On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust "
        "Models, arXiv:1810.12715",
        norms=frozenset({"linf"}),
        is_certified=True,
    )

    kappa: float = 0.5
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("ibp", "kappa", self.kappa, 0, 1)
        require("ibp", "radius", self.radius, 0)

    @property
    def passes(self) -> float:
        """A clean pass, and two (centre and radius) for the bounds, forward and backward."""
        return 6

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """Both parts, weighed by how far the radius is ramped."""
        robust = _certified.bounded(step, batch, batch.x, self.radius).loss
        return _certified.mixed(step, batch, robust, self.kappa)

    def ramp(self, progress: float, share: float) -> float:
        """A warm-up at radius 0, then straight up."""
        return _certified.slow_ramp(progress, share)
