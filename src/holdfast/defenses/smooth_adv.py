"""Adversarially trained smoothed classifiers (Salman et al., 2019, arXiv:1906.04584; "SmoothAdv").

The attack is made against the smoothed classifier: it ascends ``-log mean_i p_y(x' + sigma n_i)``
over noise drawn once per batch, then the network is trained on the same noise around x'.

Difference from the authors' code: steps of the set's own size (2.5 radius / steps).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.defenses._losses import smoothed_cross_entropy
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.rows import like

_NOISE = "smooth_adv/noise"


@final
@dataclass(frozen=True, slots=True)
class SmoothAdv(Recipe):
    """Cross-entropy on noise around inputs changed against the smoothed classifier.

    Attributes:
        sigma: Standard deviation of the noise, in input units.
        steps: Steps of the inner attack; 0: training on noise alone.
        draws: Noise per sample.
    """

    card: ClassVar[Card] = Card(
        name="smooth_adv",
        title="adversarial training of the smoothed classifier: larger certified radii",
        paper="Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck (2019), Provably Robust Deep "
        "Learning via Adversarially Trained Smoothed Classifiers, arXiv:1906.04584",
        norms=frozenset({"l2"}),
    )

    sigma: float = 0.25
    steps: int = 4
    draws: int = 2

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("smooth_adv", "sigma", self.sigma, 0)
        require("smooth_adv", "steps", self.steps, 0)
        require("smooth_adv", "draws", self.draws, 1)

    @property
    def passes(self) -> float:
        """A forward and a backward pass per draw, for every step and for the weights."""
        return 2 * self.draws * (self.steps + 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The change against the smoothed classifier, and the noise it was made with."""
        shape = (self.draws, *batch.x.shape[1:])
        noise = self.sigma * step.rng(batch).normal(shape, batch.x.dtype).transpose(0, 1)
        allowed, x = step.bind(batch), batch.x
        for _ in range(self.steps):
            gradient = self._gradient(step, batch, x, noise)
            direction = allowed.direction(gradient.nan_to_num(0.0, 0.0, 0.0), x)
            size = like(allowed.natural_step(self.steps), direction)
            x = allowed.project(x + size * direction)
        return replace(batch, x_adv=x, crafted={**batch.crafted, _NOISE: noise})

    def _gradient(self, step: Step, batch: Batch, x: Tensor, noise: Tensor) -> Tensor:
        """Of the smoothed loss with respect to x: summed over the draws."""

        def loss(logits: Tensor) -> Tensor:
            return smoothed_cross_entropy(logits.reshape(len(noise), len(x), -1), batch.y)

        gradient = step.input_gradient((x + noise).flatten(0, 1), loss)
        return gradient.reshape(noise.shape).sum(0)

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """The mean over the draws of ``CE(f(x_adv + sigma n), y)``."""
        points = batch.adversarial + batch.crafted[_NOISE]
        logits = step.logits(points.flatten(0, 1)).reshape(*points.shape[:2], -1)
        return torch.stack([batch.cross_entropy(z).mean() for z in logits]).mean()
