"""Mixed clean and adversarial training (Goodfellow et al., 2015, arXiv:1412.6572).

The classical four steps, at scale in Kurakin, Goodfellow and Bengio (2017, arXiv:1611.01236).

Generate changed inputs from the present model, augment each batch with them, train on both, and
evaluate on both (the loop does). ``min_w E [c CE(f(x), y) + (1 - c) CE(f(x'), y)]``.

Differences from the papers: any inner attack (PGD by default: one step alone collapses), one radius
instead of one drawn per sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import require, without_labels
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class Mixed(Recipe):
    """Cross-entropy on clean and on changed inputs.

    Attributes:
        clean: Weight of the clean half: 1 is ordinary training, 0 is PGD training.
        attack: The inner attack.
        predicted: Craft against the model's own answers instead of the labels, so that the change
            cannot tell the label (label leaking; Kurakin et al., section 4).
    """

    card: ClassVar[Card] = Card(
        name="mixed",
        title="train on clean and on changed inputs, half and half",
        paper="Goodfellow, Shlens and Szegedy (2015), Explaining and Harnessing Adversarial "
        "Examples, arXiv:1412.6572",
    )

    clean: float = 0.5
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    predicted: bool = False

    def __post_init__(self) -> None:
        """Refuse a weight that is none."""
        require("mixed", "clean", self.clean, 0, 1)

    @property
    def passes(self) -> float:
        """The inner attack, and two forward and backward passes for the weights."""
        crafting = 0 if self.clean == 1 else 2 * (self.attack.max_queries - 1)
        return crafting + (2 if self.clean in (0, 1) else 4)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """Generate."""
        if self.clean == 1:
            return batch
        aim = batch
        if self.predicted:
            aim = without_labels(batch, step.logits_without_gradient(batch.x).argmax(1))
        return replace(batch, x_adv=step.attack(aim, self.attack))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """Both halves in one pass, so that batch statistics are those of the mixture."""
        if self.clean in (0, 1):
            x = batch.x if self.clean == 1 else batch.adversarial
            return batch.cross_entropy(step.logits(x)).mean()
        logits = step.logits(torch.cat([batch.x, batch.adversarial]))
        clean, adversarial = (batch.cross_entropy(z).mean() for z in logits.chunk(2))
        return self.clean * clean + (1 - self.clean) * adversarial
