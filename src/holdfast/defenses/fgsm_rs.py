"""FGSM with a random start (Wong et al., 2020, "Fast is better than free", arXiv:2001.03994).

One gradient step from a random allowed point, brought back into the ball. As cheap as two ordinary
epochs, and it may collapse within one: robust to this one step, broken by several (catastrophic
overfitting). The loop watches for that.

Difference from the authors' code: the loop's schedule and stopping rule instead of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import require, stepped
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.pgd_training import PGDTraining

SAFER_STEPS = 2  # a third of the passes more; the watch goes on, and takes more steps if need be


@final
@dataclass(frozen=True, slots=True)
class FGSMRS(Recipe):
    """Cross-entropy on inputs that one step has changed.

    Attributes:
        step_size: In units of the radius. Without a random start and with 1 it is FGSM.
        random_start: Start anywhere in the ball, not at the input.
    """

    card: ClassVar[Card] = Card(
        name="fgsm_rs",
        title="train on inputs that one step from a random start has changed: cheap, watch it",
        paper="Wong, Rice and Kolter (2020), Fast is better than free: Revisiting adversarial "
        "training, arXiv:2001.03994",
        is_single_step=True,
    )

    step_size: float = 1.25
    random_start: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative step."""
        require("fgsm_rs", "step_size", self.step_size, 0)

    @property
    def passes(self) -> float:
        """Two forward and two backward passes."""
        return 4

    def craft(self, step: Step, batch: Batch) -> Batch:
        """Random point, one step, back into the set."""
        allowed = step.bind(batch)
        start = allowed.sample(step.rng(batch)) if self.random_start else batch.x
        changed = stepped(step, batch, allowed, start, self.step_size)
        return replace(batch, x_adv=allowed.project(changed).detach())

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()

    def safer(self) -> Recipe | None:
        """Several steps."""
        return PGDTraining(PGD(steps=SAFER_STEPS))
