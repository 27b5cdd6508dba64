"""Theoretically principled trade-off (Zhang et al., 2019, arXiv:1901.08573).

``min_w E [CE(f(x), y) + beta max_{x'} KL(f(x) || f(x'))]``: the clean error and how much the answer
can be moved, weighed against each other. ``beta`` (1/lambda in the paper) buys robust accuracy with
clean accuracy.

Differences from the authors' code: the divergence is computed from log-probabilities, so that
probabilities of 0 and 1 stay finite; in l2 the inner ascent follows the ball's own geometry instead
of an optimiser over the change; labels may be smoothed or mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Attack, Objective
from holdfast.attacks.pgd import PGD
from holdfast.defenses._losses import kl
from holdfast.defenses._steps import beside, require
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class TRADES(Recipe):
    """Cross-entropy of clean inputs and ``beta`` times the largest change of the answer.

    Attributes:
        beta: Weight of the divergence: 6 in the paper for CIFAR-10, 1 for MNIST. 0: cross-entropy.
        attack: The inner attack; it ascends the divergence.
        start: Standard deviation of the normal noise it starts with.
    """

    card: ClassVar[Card] = Card(
        name="trades",
        title="weigh clean accuracy against how far the answer can be moved",
        paper="Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan (2019), Theoretically Principled "
        "Trade-off between Robustness and Accuracy, arXiv:1901.08573",
    )

    beta: float = 6.0
    attack: Attack = field(default_factory=lambda: PGD(steps=10, random_start=False))
    start: float = 0.001

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("trades", "beta", self.beta, 0)
        require("trades", "start", self.start, 0)

    @property
    def passes(self) -> float:
        """The inner attack, the clean answer, and two forward and backward passes for weights."""
        return 4 + 1 + 2 * (self.attack.max_queries - 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The allowed input whose answer is furthest from the clean one."""
        if self.beta == 0:
            return batch
        clean = step.logits_without_gradient(batch.x)
        objective = Objective(_moved, (clean,))
        start = beside(step, batch, self.start)
        return replace(
            batch, x_adv=step.attack(batch, self.attack, objective=objective, start=start)
        )

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x), y) + beta KL(f(x) || f(x'))``, with gradients through both answers."""
        logits = step.logits(batch.x)
        loss = batch.cross_entropy(logits).mean()
        if self.beta == 0:
            return loss
        divergence = kl(logits, step.logits(batch.adversarial)).mean()
        step.notes["clean"], step.notes["divergence"] = loss.detach(), divergence.detach()
        return loss + self.beta * divergence


def _moved(logits: Tensor, clean: Tensor) -> Tensor:
    return kl(clean, logits)
