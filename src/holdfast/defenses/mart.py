"""Misclassification-aware adversarial training (Wang et al., 2020).

"Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020.

``min_w E [BCE(f(x'), y) + beta KL(f(x) || f(x')) (1 - f(x)_y)]``, with the boosted cross-entropy
that also keeps the likeliest wrong class down. Its gains under PGD shrink under stronger attacks:
judge it by an audit.

Differences from the authors' code: divergences from log-probabilities (finite at 0 and 1); x' is
the last iterate of the given attack.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses import _losses
from holdfast.defenses._steps import beside, require
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class MART(Recipe):
    """Boosted cross-entropy on changed inputs; a divergence where the clean answer is wrong.

    Attributes:
        beta: Weight of the divergence.
        attack: The inner attack.
        start: Standard deviation of the normal noise it starts with.
    """

    card: ClassVar[Card] = Card(
        name="mart",
        title="adversarial training that minds what the model gets wrong anyway",
        paper="Wang, Zou, Yi, Bailey, Ma and Gu (2020), Improving Adversarial Robustness Requires "
        "Revisiting Misclassified Examples, ICLR",
    )

    beta: float = 5.0
    attack: Attack = field(default_factory=lambda: PGD(steps=10, random_start=False))
    start: float = 0.001

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("mart", "beta", self.beta, 0)
        require("mart", "start", self.start, 0)

    @property
    def passes(self) -> float:
        """The inner attack, and two forward and backward passes for the weights."""
        return 4 + 2 * (self.attack.max_queries - 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The last iterate of the inner attack on the cross-entropy."""
        start = beside(step, batch, self.start)
        return replace(batch, x_adv=step.attack(batch, self.attack, start=start))

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """The published loss; where images were mixed, the label of the larger part counts."""
        adversarial = step.logits(batch.adversarial)
        return _losses.mart(step.logits(batch.x), adversarial, batch.y, self.beta).mean()
