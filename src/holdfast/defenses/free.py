"""Adversarial training for free (Shafahi et al., 2019, arXiv:1904.12843).

Every batch is used m times. One backward pass gives the gradient for the weights and the gradient
for the change, which is kept from repeat to repeat and from batch to batch. An epoch of m repeats
costs m ordinary epochs, so that m times fewer epochs are run: no pass is paid for crafting.

Difference from the authors' code: works in any norm ball, and the change is kept in the ball as the
radius is ramped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.pgd import PGD
from holdfast.defenses._steps import in_domain, require, scaled
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.fgsm_rs import SAFER_STEPS
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.perturbations.ball import SHAPES
from holdfast.rows import like
from holdfast.threat import AllowedSet

_DELTA = "free/delta"
_FAR = 1e9  # a box that never matters


@final
@dataclass(frozen=True, slots=True)
class Free(Recipe):
    """Cross-entropy on inputs with a change that every update's own gradient moves on.

    Attributes:
        m: Updates with each batch; 8 in the paper for CIFAR-10, 4 for ImageNet.
        step_size: Of the change, in units of the radius.
    """

    card: ClassVar[Card] = Card(
        name="free",
        title="reuse each update's gradient for the attack: no pass is paid for crafting",
        paper="Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor and Goldstein (2019), "
        "Adversarial Training for Free!, arXiv:1904.12843",
        is_single_step=True,
    )

    m: int = 8
    step_size: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("free", "m", self.m, 1)
        require("free", "step_size", self.step_size, 0)

    @property
    def passes(self) -> float:
        """One forward and one backward pass for both gradients, at every repeat."""
        return 2 * self.m

    @property
    def repeats(self) -> int:
        """The paper's m."""
        return self.m

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The inputs with the change that is remembered, which asks for its own gradient."""
        changed = batch.x + _around_nothing(step, batch).project(_delta(step, batch))
        x_adv = in_domain(step.bind(batch), changed)
        return replace(batch, x_adv=x_adv.detach().requires_grad_())

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x + delta), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()

    def finish(self, step: Step, batch: Batch) -> None:
        """The change goes one step along the gradient that the weights' backward pass left."""
        found = batch.adversarial.grad
        gradient = torch.zeros_like(batch.x) if found is None else found.nan_to_num(0.0, 0.0, 0.0)
        around = _around_nothing(step, batch)
        direction = around.direction(gradient)
        moved = _delta(step, batch) + like(self.step_size * around.radius, direction) * direction
        _remember(step, around.project(moved))

    def safer(self) -> Recipe | None:
        """Several steps."""
        return PGDTraining(PGD(steps=SAFER_STEPS))


def _delta(step: Step, batch: Batch) -> Tensor:
    """The change of each place in the batch ``(n, *shape)``, zero at first."""
    delta = step.state.get(_DELTA)
    missing = len(batch.x) - (0 if delta is None else len(delta))
    if delta is None or missing > 0:
        zeros = batch.x.new_zeros(missing, *batch.x.shape[1:])
        delta = zeros if delta is None else torch.cat([delta, zeros])
    return delta[: len(batch.x)]


def _remember(step: Step, delta: Tensor) -> None:
    """Places that a smaller batch does not have keep theirs."""
    before = step.state.get(_DELTA)
    rest = [] if before is None else [before[len(delta) :]]
    step.state[_DELTA] = torch.cat([delta.detach(), *rest])


def _around_nothing(step: Step, batch: Batch) -> AllowedSet:
    """The ball around zero, without the domain: what the change itself may be."""
    ball = scaled(step.threat, 1.0)
    radius = step.bind(batch).radius
    box = batch.x.new_tensor(_FAR)
    return SHAPES[ball.norm].around(torch.zeros_like(batch.x), radius, -box, box)
