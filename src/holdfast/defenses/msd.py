"""Multi steepest descent (Maini, Wong and Kolter, 2020, arXiv:1909.04068).

One walk for several threats: at every step each threat proposes its own steepest step, brought back
into its own ball, and the proposal of largest loss is taken, sample by sample. With one threat it
is PGD.

Differences from the authors' code: steps of the sets' own size (2.5 radius / steps); in l1 the
steepest step of the set instead of a random number of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.max import worst
from holdfast.rows import like


@final
@dataclass(frozen=True, slots=True)
class MSD(Recipe):
    """Cross-entropy on the end of one walk through the union of the threats.

    Attributes:
        steps: Steps of the walk; 50 in the paper.
        random_start: Start at a random input that the first threat allows.
    """

    card: ClassVar[Card] = Card(
        name="msd",
        title="several threats at once: one walk that takes the worst threat's step each time",
        paper="Maini, Wong and Kolter (2020), Adversarial Robustness Against the Union of Multiple "
        "Perturbation Models, arXiv:1909.04068",
        n_threats=0,
    )

    steps: int = 20
    random_start: bool = False

    def __post_init__(self) -> None:
        """Refuse a walk without steps."""
        require("msd", "steps", self.steps, 1)

    @property
    def passes(self) -> float:
        """For two threats: a gradient and two forward passes per step, one update."""
        return 2 + 4 * self.steps

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The walk."""
        sets = [step.bind(batch, threat) for threat in step.threats]
        x = sets[0].sample(step.rng(batch)) if self.random_start else batch.x
        for _ in range(self.steps):
            gradient = step.input_gradient(x, batch.cross_entropy).nan_to_num(0.0, 0.0, 0.0)
            proposals = []
            for allowed in sets:
                direction = allowed.direction(gradient, x)
                size = like(allowed.natural_step(self.steps), direction)
                proposals.append(allowed.project(x + size * direction))
            x = worst(step, batch, proposals)
        return replace(batch, x_adv=x.detach())

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()
