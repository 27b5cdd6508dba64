"""Recipes with one thing wrong each: what the contracts must not let pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from holdfast.attacks.pgd import PGD
from holdfast.defenses.awp import AWP
from holdfast.defenses.base import Card, Recipe
from holdfast.defenses.free import Free
from holdfast.defenses.pgd_training import PGDTraining

CARD: Any = replace(PGDTraining.card, name="planted")


@dataclass(frozen=True)
class Sound(Recipe):
    """PGD training, unharmed: the defects below change one thing in it."""

    card: ClassVar[Card] = CARD
    attack: PGD = field(default_factory=lambda: PGD(steps=3))

    @property
    def passes(self) -> float:
        return 2 * self.attack.max_queries

    def craft(self, step, batch):
        return replace(batch, x_adv=step.attack(batch, self.attack))

    def loss(self, step, batch):
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()


class LeavesTheBall(Sound):
    def craft(self, step, batch):
        crafted = super().craft(step, batch)
        return replace(crafted, x_adv=batch.x + 2 * (crafted.adversarial - batch.x))


class LeavesTheDomain(Sound):
    def craft(self, step, batch):
        eps = step.bind(batch).radius.reshape(-1, 1, 1, 1)
        return replace(batch, x_adv=batch.x + eps)


class ForgetsTheRamp(Sound):
    def craft(self, step, batch):
        return super().craft(replace(step, ramp=1.0), batch)


class WritesIntoX(Sound):
    def craft(self, step, batch):
        batch.x.copy_(super().craft(step, batch).adversarial)
        return batch


class CraftsInTrainingMode(Sound):
    """Batch statistics move while crafting: see the torchattacks and foolbox issue lists."""

    def craft(self, step, batch):
        step.network.train()
        step.logits(batch.x)
        return super().craft(step, batch)


class StaysInEvaluationMode(Sound):
    def craft(self, step, batch):
        step.network.eval()
        return super().craft(step, batch)


class LeavesGradientsBehind(Sound):
    def craft(self, step, batch):
        batch.cross_entropy(step.network.eval()(batch.x)).sum().backward()
        step.network.train()
        return super().craft(step, batch)


class StepsItself(Sound):
    def update(self, step, batch):
        loss = super().update(step, batch)
        with torch.no_grad():
            for p in step.weights():
                p.sub_(0.01 * p.grad)  # type: ignore[operator]
        return loss


class ForgetsToMoveBack(AWP):  # type: ignore[misc]
    """Adversarial weight perturbation that subtracts its move: rounding does not cancel."""

    def update(self, step, batch):
        crafted = self.craft(step, batch)
        moves = self._move(step, crafted)
        with torch.no_grad():
            for p, move in zip(step.weights(), moves, strict=True):
                p.add_(move)
        loss = self.loss(step, crafted)
        step.backward(loss)
        with torch.no_grad():
            for p, move in zip(step.weights(), moves, strict=True):
                p.sub_(move)
        return loss.detach()


class FreezesTheWeights(Sound):
    def update(self, step, batch):
        loss = super().update(step, batch)
        step.network.requires_grad_(False)
        return loss


class DetachesTheBody(Sound):
    """Gradients that reach the last layer alone."""

    def loss(self, step, batch):
        toy = step.network.module
        toy.train()
        hidden = toy.norm(toy.conv(batch.adversarial)).relu().detach()
        return batch.cross_entropy(toy.last(hidden.flatten(1))).mean()


class InfiniteLoss(Sound):
    def loss(self, step, batch):
        p = (100 * step.logits(batch.adversarial)).softmax(1).gather(1, batch.y[:, None])
        return -(p * 1e-44).log().mean()


class ReturnsAGraph(Sound):
    def update(self, step, batch):
        loss = self.loss(step, self.craft(step, batch))
        step.backward(loss)
        return loss


class UsesTorchsNumbers(Sound):
    def craft(self, step, batch):
        allowed = step.bind(batch)
        return replace(batch, x_adv=allowed.project(batch.x + 0.1 * torch.randn_like(batch.x)))


class SeedsTorch(Sound):
    def craft(self, step, batch):
        torch.manual_seed(0)
        return super().craft(step, batch)


class RemembersInItself(Sound):
    """Memory outside of step.state is lost at every stop."""

    memory: ClassVar[dict[int, Any]] = {}

    def craft(self, step, batch):
        last = self.memory.get(id(self))
        crafted = super().craft(step, batch)
        self.memory[id(self)] = crafted.adversarial
        return crafted if last is None else replace(crafted, x_adv=last)


class ForgetsItsState(Free):  # type: ignore[misc]
    """Free training that keeps its change in a variable, not in the step's state."""

    kept: ClassVar[dict[int, Any]] = {}

    def finish(self, step, batch):
        super().finish(step, batch)
        self.kept[id(self)] = step.state.pop("free/delta")

    def craft(self, step, batch):
        if id(self) in self.kept:
            step.state["free/delta"] = self.kept[id(self)]
        return super().craft(step, batch)


class UnderstatesItsCost(Sound):
    passes = 2.0  # type: ignore[assignment]


class DropsAnOption(Sound):
    def options(self):
        return {"attack": PGD(steps=7)}


class RampsBackwards(Sound):
    def ramp(self, progress, share):
        return 1.0 - progress


class TrainsOnCleanInputs(Sound):
    def craft(self, step, batch):
        return batch


class HelpsTheLabel(Sound):
    """The sign of the attack is wrong: inputs become easier."""

    def craft(self, step, batch):
        crafted = super().craft(step, batch)
        return replace(crafted, x_adv=step.bind(batch).project(2 * batch.x - crafted.adversarial))


class RaisesTheLoss(Sound):
    def loss(self, step, batch):
        return -super().loss(step, batch)
