"""Ensemble adversarial training (Tramer et al., 2018, arXiv:1705.07204).

Each batch is changed against one network drawn from a set: the model itself, or static ones trained
before. Changes that do not come from the model itself cannot be weakened by masking its gradients,
and what transfers from other models is met in training. It was made for black-box attackers: judge
it under white-box attacks too.

Differences from the paper: any inner attack; each network is as likely as the next, the model
itself among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.model import Model

_CHOICE = 1  # purpose of the random number that draws the network


@final
@dataclass(frozen=True, slots=True)
class Ensemble(Recipe):
    """Cross-entropy on clean inputs and on inputs changed against a network drawn per batch.

    Attributes:
        sources: Static networks (inputs in the domain to logits); without any only the model itself
            is attacked.
        attack: The inner attack.
        clean: Weight of the clean half.
    """

    card: ClassVar[Card] = Card(
        name="ensemble",
        title="train on changes made against other models too: for attackers without gradients",
        paper="Tramer, Kurakin, Papernot, Goodfellow, Boneh and McDaniel (2018), Ensemble "
        "Adversarial Training: Attacks and Defenses, arXiv:1705.07204",
    )

    sources: tuple[nn.Module | Model, ...] = ()
    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    clean: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a weight that is none."""
        require("ensemble", "clean", self.clean, 0, 1)

    @property
    def passes(self) -> float:
        """The inner attack (on sources as large as the model), and two passes for the weights."""
        return 4 + 2 * (self.attack.max_queries - 1)

    def drawn(self, step: Step) -> nn.Module | Model | None:
        """The network of this batch; None: the model itself."""
        choice = int(step.shared_rng(_CHOICE).integers(len(self.sources) + 1))
        return None if choice == len(self.sources) else self.sources[choice]

    def craft(self, step: Step, batch: Batch) -> Batch:
        """Against the network drawn for this batch."""
        return replace(batch, x_adv=step.attack(batch, self.attack, model=self.drawn(step)))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """Both halves in one pass."""
        logits = step.logits(torch.cat([batch.x, batch.adversarial]))
        clean, adversarial = (batch.cross_entropy(z).mean() for z in logits.chunk(2))
        return self.clean * clean + (1 - self.clean) * adversarial
