"""Small boxes (Mueller et al., 2023, arXiv:2210.04871; "SABR").

Interval bounds over the whole ball are loose and cost accuracy. Here PGD finds a bad centre, and
only a small box around it is bounded: ``min_w E CE(worst logits over [x' - t, x' + t], y)`` with
``t = share eps`` and x' within ``(1 - share) eps`` of x, so that the box lies in the ball.
The result needs a better verifier than intervals. With share 1 it is IBP, towards 0 PGD training.

Differences from the paper: no regularisation or initialisation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses import _certified
from holdfast.defenses._steps import require, scaled
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class SABR(Recipe):
    """Cross-entropy of the worst logits within bounds of a small box that PGD has placed.

    Attributes:
        share: Size of the box in units of the radius (lambda in the paper): 0.4 for MNIST at 0.1,
            0.6 at 0.3, 0.1 to 0.7 for CIFAR-10.
        attack: Places the centre.
    """

    card: ClassVar[Card] = Card(
        name="sabr",
        title="certified training on small boxes that an attack has placed: more clean accuracy",
        paper="Mueller, Eckert, Fischer and Vechev (2023), Certified Training: Small Boxes are All "
        "You Need, arXiv:2210.04871",
        norms=frozenset({"linf"}),
        is_certified=True,
    )

    share: float = 0.4
    attack: Attack = field(default_factory=lambda: PGD(steps=8))

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        require("sabr", "share", self.share, 0, 1)

    @property
    def passes(self) -> float:
        """The inner attack, and two passes (centre and radius) for the bounds."""
        return 4 + (0 if self.share == 1 else 2 * (self.attack.max_queries - 1))

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The centre of the small box."""
        if self.share == 1:
            return batch
        threat = scaled(step.threat, 1 - self.share)
        return replace(batch, x_adv=step.attack(batch, self.attack, threat=threat))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(worst logits over the small box, y)``."""
        return _certified.bounded(step, batch, batch.adversarial, self.share).loss

    def ramp(self, progress: float, share: float) -> float:
        """A warm-up at radius 0, then straight up."""
        return _certified.slow_ramp(progress, share)
