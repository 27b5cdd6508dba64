"""N-FGSM: noise first, then one step that is not brought back (de Jorge et al., 2022).

"Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", arXiv:2202.01181.

``x' = x + u + eps sign(grad l(x + u))`` with u uniform on ``[-k eps, k eps]``. Noise beyond the
ball and no clipping are what keeps single-step training from collapsing. Training inputs therefore
leave the threat's ball (by up to k eps), though never the domain.

Difference from the authors' code: works in any norm ball, its noise from the ball of radius k eps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import in_domain, require, stepped
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.fgsm_rs import SAFER_STEPS
from holdfast.defenses.pgd_training import PGDTraining


@final
@dataclass(frozen=True, slots=True)
class NFGSM(Recipe):
    """Cross-entropy on noisy inputs that one step has changed.

    Attributes:
        noise: Radius of the noise in units of the threat's radius; 0: FGSM.
        step_size: In the same units.
    """

    card: ClassVar[Card] = Card(
        name="n_fgsm",
        title="train on noisy inputs that one step has changed: cheap, rarely collapses",
        paper="de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez and Dokania (2022), Make Some Noise: "
        "Reliable and Efficient Single-Step Adversarial Training, arXiv:2202.01181",
        is_single_step=True,
        stays_inside=False,
    )

    noise: float = 2.0
    step_size: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative sizes."""
        require("n_fgsm", "noise", self.noise, 0)
        require("n_fgsm", "step_size", self.step_size, 0)

    @property
    def passes(self) -> float:
        """Two forward and two backward passes."""
        return 4

    def craft(self, step: Step, batch: Batch) -> Batch:
        """Noise, one step, cut with the domain."""
        allowed = step.bind(batch)
        around = allowed.resized(self.noise * allowed.radius)
        start = around.sample(step.rng(batch)) if self.noise > 0 else batch.x
        changed = stepped(step, batch, allowed, start, self.step_size)
        return replace(batch, x_adv=in_domain(allowed, changed).detach())

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()

    def safer(self) -> Recipe | None:
        """Several steps."""
        return PGDTraining(PGD(steps=SAFER_STEPS))
