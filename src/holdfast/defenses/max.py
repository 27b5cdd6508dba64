"""Training against the worst of several threats (Tramer and Boneh, 2019, arXiv:1904.13000; "MAX").

``min_w E max_t max_{x' in t} CE(f(x'), y)``: every threat's attack runs on every sample, and the
one of largest loss counts. Costs as many attacks as there are threats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.rows import like


@final
@dataclass(frozen=True, slots=True)
class MAX(Recipe):
    """Cross-entropy on the worst of the changes that the threats' attacks find.

    Attributes:
        attack: The inner attack, for every threat.
    """

    card: ClassVar[Card] = Card(
        name="max",
        title="several threats at once: the worst of their attacks, sample by sample",
        paper="Tramer and Boneh (2019), Adversarial Training and Robustness for Multiple "
        "Perturbations, arXiv:1904.13000",
        n_threats=0,
    )

    attack: Attack = field(default_factory=lambda: PGD(steps=10))

    @property
    def passes(self) -> float:
        """For two threats: both attacks, one more forward pass each, one update."""
        return 2 + 2 * (2 * (self.attack.max_queries - 1) + 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The point of largest loss, threat by threat."""
        points = [step.attack(batch, self.attack, threat=threat) for threat in step.threats]
        return replace(batch, x_adv=worst(step, batch, points))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()


def worst(step: Step, batch: Batch, points: list[Tensor]) -> Tensor:
    """Row by row the point ``(n, *shape)`` of largest loss; the first among equals."""
    if len(points) == 1:
        return points[0]
    best = points[0]
    highest = batch.cross_entropy(step.logits_without_gradient(best))
    for z in points[1:]:
        loss = batch.cross_entropy(step.logits_without_gradient(z))
        is_worse = loss > highest
        best = torch.where(like(is_worse, z), z, best)
        highest = torch.where(is_worse, loss, highest)
    return best
