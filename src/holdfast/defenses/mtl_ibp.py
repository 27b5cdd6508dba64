"""MTL-IBP (De Palma et al., 2024, arXiv:2305.13991, "Expressive Losses for Verified Robustness").

``min_w E [(1 - alpha) CE(f(x'), y) + alpha CE(worst logits, y)]``: an attack from below, interval
bounds from above, and alpha in between. With alpha 0 it is PGD training, with 1 IBP; small values
keep accuracy for verifiers that are better than intervals.

Differences from the paper: no regularisation or initialisation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses import _certified
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class MTLIBP(Recipe):
    """Adversarial and worst-case cross-entropy, weighed by alpha.

    Attributes:
        alpha: Weight of the bound.
        attack: The inner attack.
    """

    card: ClassVar[Card] = Card(
        name="mtl_ibp",
        title="certified training between an attack and a bound, at a weight of your choice",
        paper="De Palma, Bunel, Dvijotham, Kumar, Stanforth and Lomuscio (2024), Expressive Losses "
        "for Verified Robustness via Convex Combinations, arXiv:2305.13991",
        norms=frozenset({"linf"}),
        is_certified=True,
    )

    alpha: float = 0.5
    attack: Attack = field(default_factory=lambda: PGD(steps=8))

    def __post_init__(self) -> None:
        """Refuse a weight that is none."""
        require("mtl_ibp", "alpha", self.alpha, 0, 1)

    @property
    def passes(self) -> float:
        """The inner attack and its update, and two passes (centre and radius) for the bounds."""
        return 6 + 2 * (self.attack.max_queries - 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The last iterate of the inner attack."""
        if self.alpha == 1:
            return batch
        return replace(batch, x_adv=step.attack(batch, self.attack))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """Both parts; each is left out where its weight is 0."""
        parts: list[Tensor] = []
        if self.alpha < 1:
            adversarial = batch.cross_entropy(step.logits(batch.adversarial)).mean()
            parts.append((1 - self.alpha) * adversarial)
        if self.alpha > 0:
            parts.append(self.alpha * _certified.bounded(step, batch, batch.x, 1.0).loss)
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def ramp(self, progress: float, share: float) -> float:
        """A warm-up at radius 0, then straight up."""
        return _certified.slow_ramp(progress, share)
