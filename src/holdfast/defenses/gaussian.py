"""Training on noise (Cohen, Rosenfeld and Kolter, 2019, arXiv:1902.02918).

``min_w E CE(f(x + sigma n), y)`` with standard normal n: what a classifier needs to be smoothed.
The radius that smoothing certifies grows with sigma; clean accuracy falls with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step


@final
@dataclass(frozen=True, slots=True)
class Gaussian(Recipe):
    """Cross-entropy on inputs with normal noise, which may leave the domain as in certification.

    Attributes:
        sigma: Standard deviation of the noise, in input units; certify with the same.
    """

    card: ClassVar[Card] = Card(
        name="gaussian",
        title="train on noise, for a classifier that is certified by smoothing",
        paper="Cohen, Rosenfeld and Kolter (2019), Certified Adversarial Robustness via Randomized "
        "Smoothing, arXiv:1902.02918",
        norms=frozenset({"l2"}),
        stays_inside=False,
    )

    sigma: float = 0.25

    def __post_init__(self) -> None:
        """Refuse negative noise."""
        require("gaussian", "sigma", self.sigma, 0)

    @property
    def passes(self) -> float:
        """One forward and one backward pass."""
        return 2

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The noisy inputs."""
        noise = step.rng(batch).normal(tuple(batch.x.shape[1:]), batch.x.dtype)
        return replace(batch, x_adv=batch.x + self.sigma * noise)

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x + sigma n), y)``."""
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()
