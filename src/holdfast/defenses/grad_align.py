"""Gradient alignment (Andriushchenko and Flammarion, 2020, arXiv:2007.02617).

``+ weight (1 - cos(grad_x l(x), grad_x l(x + u)))`` with u random in the ball. Single-step training
collapses when the loss bends within the ball, so that one gradient misses the far side; the
penalty keeps it straight. A linear model of two classes has none.

Difference from the authors' code: a wrapper on any recipe (theirs on FGSM alone).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.defenses._losses import misalignment
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.fgsm_rs import FGSMRS

_NOISE = 1  # purpose of the random numbers: others than the recipe's own


@final
@dataclass(frozen=True, slots=True)
class GradAlign(Recipe):
    """A recipe with a penalty on gradients that turn within the ball.

    Attributes:
        recipe: What is trained with; FGSM by default, as in the paper.
        weight: Of the penalty: 0.2 at 8/255 on CIFAR-10; 0 changes nothing.
    """

    card: ClassVar[Card] = Card(
        name="grad_align",
        title="single-step training whose loss is kept straight within the ball",
        paper="Andriushchenko and Flammarion (2020), Understanding and Improving Fast Adversarial "
        "Training, arXiv:2007.02617",
        is_single_step=True,
    )

    recipe: Recipe = field(default_factory=lambda: FGSMRS(step_size=1.0, random_start=False))
    weight: float = 0.2

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        require("grad_align", "weight", self.weight, 0)

    @property
    def passes(self) -> float:
        """Two input gradients, each differentiated again, beside the recipe's own."""
        return self.recipe.passes + (0 if self.weight == 0 else 8 * self.repeats)

    @property
    def repeats(self) -> int:
        """Those of the recipe."""
        return self.recipe.repeats

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The recipe's."""
        return self.recipe.craft(step, batch)

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """The recipe's, and the penalty."""
        loss = self.recipe.loss(step, batch)
        if self.weight == 0:
            return loss
        penalty = self.penalty(step, batch).mean()
        step.notes["misalignment"] = penalty.detach()
        return loss + self.weight * penalty

    def finish(self, step: Step, batch: Batch) -> None:
        """The recipe's."""
        self.recipe.finish(step, batch)

    def ramp(self, progress: float, share: float) -> float:
        """The recipe's."""
        return self.recipe.ramp(progress, share)

    def penalty(self, step: Step, batch: Batch) -> Tensor:
        """``1 - cos`` of the gradients at x and at a random point ``(n,)``."""
        elsewhere = step.bind(batch).sample(step.rng(batch, _NOISE))
        with step.full_precision():
            here, there = (
                step.input_gradient(x, batch.cross_entropy, create_graph=True)
                for x in (batch.x, elsewhere)
            )
            return misalignment(here, there)

    def safer(self) -> Recipe | None:
        """The penalty doubled once, then what the recipe itself falls back to."""
        if self.weight < 2 * 0.2:
            return replace(self, weight=2 * max(self.weight, 0.1))
        return self.recipe.safer()
