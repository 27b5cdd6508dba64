"""Adversarial training with projected gradient descent (Madry et al., 2018, arXiv:1706.06083).

``min_w E max_{x' allowed} CE(f_w(x'), y)``: the inner maximum by PGD from a random start, the outer
minimum by the loop's optimiser. Differences from the paper: the crafting runs in evaluation mode
unless the loop is told otherwise, and the last iterate is used, not the one of largest loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import gentle
from holdfast.defenses.base import Batch, Card, Recipe, Step

_SAFER_STEPS = 10  # as many as the usual recipes of the literature use


@final
@dataclass(frozen=True, slots=True)
class PGDTraining(Recipe):
    """Cross-entropy on inputs that PGD has changed.

    Attributes:
        attack: The inner attack. Two steps in linf are of 0.75 of the radius where it says nothing.
    """

    card: ClassVar[Card] = Card(
        name="pgd_training",
        title="train on inputs that several gradient steps have changed",
        paper="Madry, Makelov, Schmidt, Tsipras and Vladu (2018), Towards Deep Learning Models "
        "Resistant to Adversarial Attacks, arXiv:1706.06083",
    )

    attack: Attack = field(default_factory=lambda: PGD(steps=10))

    @property
    def passes(self) -> float:
        """A forward and a backward pass for every step, and for the weights."""
        return 2 * self.attack.max_queries

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The last iterate of the inner attack."""
        attack = gentle(self.attack, step.threat)
        return replace(batch, x_adv=step.attack(batch, attack))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()

    def safer(self) -> Recipe | None:
        """More steps."""
        steps = self.attack.option("steps", 0)
        if not isinstance(self.attack, PGD) or steps >= _SAFER_STEPS:
            return None
        return PGDTraining(replace(self.attack, steps=min(2 * steps + 1, _SAFER_STEPS)))
