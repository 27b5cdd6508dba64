"""Adversarial weight perturbation (Wu, Xia and Wang, 2020, arXiv:2004.05884).

``min_w max_v E l(w + v, x')`` with ``|v_l| <= gamma |w_l|`` for each layer l: the weights are moved
to where the loss of the batch is larger, the gradient is taken there, and they are moved back. Flat
minima generalise better: robust overfitting shrinks. A wrapper on any recipe.

Differences from the authors' code: their auxiliary SGD step has no effect on the direction and is
left out; the ascent pass leaves the batch statistics alone, as their copy of the model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.pgd_training import PGDTraining

_TINY = 1e-20  # the authors' guard of the norm


@final
@dataclass(frozen=True, slots=True)
class AWP(Recipe):
    """A recipe whose gradients are taken at adversarially moved weights.

    Attributes:
        recipe: Any recipe with one update per batch: PGD training, TRADES, MART, IBP, ...
        gamma: Largest move relative to a layer's norm: 0.01 with PGD training, 0.005 with TRADES in
            the paper. 0 changes nothing, bit for bit.
        warmup: Share of the training before it starts.
    """

    card: ClassVar[Card] = Card(
        name="awp",
        title="take gradients at adversarially moved weights: less robust overfitting",
        paper="Wu, Xia and Wang (2020), Adversarial Weight Perturbation Helps Robust "
        "Generalization, arXiv:2004.05884",
    )

    recipe: Recipe = field(default_factory=PGDTraining)
    gamma: float = 0.005
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        require("awp", "gamma", self.gamma, 0)
        require("awp", "warmup", self.warmup, 0, 1)

    @property
    def passes(self) -> float:
        """One more forward and backward pass of the loss, at least."""
        return self.recipe.passes + (0 if self.gamma == 0 else 2 * self.repeats)

    @property
    def repeats(self) -> int:
        """Those of the recipe."""
        return self.recipe.repeats

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The recipe's, at the weights as they are."""
        return self.recipe.craft(step, batch)

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """The recipe's."""
        return self.recipe.loss(step, batch)

    def finish(self, step: Step, batch: Batch) -> None:
        """The recipe's."""
        self.recipe.finish(step, batch)

    def ramp(self, progress: float, share: float) -> float:
        """The recipe's."""
        return self.recipe.ramp(progress, share)

    def update(self, step: Step, batch: Batch) -> Tensor:
        """Craft, move the weights up, accumulate the gradients there, move the weights back."""
        if self.gamma == 0 or step.progress < self.warmup:
            return self.recipe.update(step, batch)
        crafted = self.craft(step, batch)
        with _moved(step.weights(), self._move(step, crafted)):
            loss = self.loss(step, crafted)
            step.backward(loss)
        self.finish(step, crafted)
        return loss.detach()

    def _move(self, step: Step, batch: Batch) -> list[Tensor]:
        """The move ``gamma |w| g / |g|`` of every layer; biases and norms' scales stay."""
        with _buffers_kept(step.network):
            gradients = step.weight_gradients(self.loss(step, batch))
        return [
            relative_move(w.detach(), g, self.gamma)
            for w, g in zip(step.weights(), gradients, strict=True)
        ]

    def safer(self) -> Recipe | None:
        """The recipe's, wrapped again."""
        inner = self.recipe.safer()
        return None if inner is None else replace(self, recipe=inner)


def relative_move(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """``gamma |w| g / |g|`` for matrices and kernels, zero for vectors; shapes of the weight."""
    if weight.ndim <= 1:
        return torch.zeros_like(weight)
    gradient = gradient.to(weight.dtype)
    return gamma * weight.norm() / (gradient.norm() + _TINY) * gradient


@contextmanager
def _moved(weights: Sequence[nn.Parameter], moves: Sequence[Tensor]) -> Iterator[None]:
    """The weights with the moves added inside; copied back as they were."""
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            for w, move in zip(weights, moves, strict=True):
                w.add_(move)
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights, before, strict=True):
                w.copy_(value)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Buffers (batch statistics) come back as they were."""
    before = [(b, b.detach().clone()) for b in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
