"""Extreme-norm adversarial training, E-AT (Croce and Hein, 2022, arXiv:2105.12508).

Robust against linf and l1 is robust against every norm between them: the convex hull of both balls
holds an l2 ball that is nearly as large as the one asked for. So every batch is trained against one
of the two extreme threats alone, drawn with a chance in proportion to how often the model now fails
against it. Made for fine-tuning: a model that is robust in any one norm needs three epochs.

Differences from the authors' code: error rates are remembered with a half-life instead of per
epoch; threats need not be linf and l1 (threats between two extremes are left out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.apgd import APGD
from holdfast.attacks.base import Attack
from holdfast.defenses._steps import require
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.threat import Threat

_ERRORS = "eat/errors"
_CHOSEN = "eat/chosen"
_CHOICE = 1  # purpose of the random number that draws the threat
_EXTREMES = ("linf", "l1")


@final
@dataclass(frozen=True, slots=True)
class EAT(Recipe):
    """Cross-entropy on inputs changed within one of the extreme threats.

    Attributes:
        attack: The inner attack.
        memory: How much of the remembered error rate stays with each batch of its threat.
    """

    card: ClassVar[Card] = Card(
        name="eat",
        title="several norms for little more than one: train on the extremes, drawn by failure",
        paper="Croce and Hein (2022), Adversarial Robustness against Multiple and Single lp-Threat "
        "Models via Quick Fine-Tuning of Robust Classifiers, arXiv:2105.12508",
        n_threats=0,
    )

    attack: Attack = field(default_factory=lambda: APGD(steps=10))
    memory: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a memory that is none."""
        require("eat", "memory", self.memory, 0, 1)

    @property
    def passes(self) -> float:
        """One attack, whatever the number of threats, and one update."""
        return 2 + 1 + 2 * (self.attack.max_queries - 1)

    def craft(self, step: Step, batch: Batch) -> Batch:
        """Against the threat drawn for this batch."""
        threats = extremes(step.threats)
        chosen = draw(step, len(threats))
        x_adv = step.attack(batch, self.attack, threat=threats[chosen], keep="best")
        place = torch.tensor(chosen, device=batch.x.device)
        return replace(batch, x_adv=x_adv, crafted={**batch.crafted, _CHOSEN: place})

    def loss(self, step: Step, batch: Batch) -> Tensor:
        """``CE(f(x_adv), y)``; the share of wrong answers is remembered for the draw."""
        logits = step.logits(batch.adversarial)
        wrong = (logits.detach().argmax(1) != batch.y).float().mean()
        chosen, before = batch.crafted[_CHOSEN], _errors(step, len(extremes(step.threats)))
        rate = self.memory * before[chosen] + (1 - self.memory) * wrong.to(before)
        step.state[_ERRORS] = before.scatter(0, chosen[None], rate[None])
        return batch.cross_entropy(logits).mean()


def extremes(threats: Sequence[Threat]) -> tuple[Threat, ...]:
    """The linf and the l1 threat where there are both, else all of them."""
    by_norm = {threat.norm: threat for threat in threats}
    if all(norm in by_norm for norm in _EXTREMES):
        return tuple(by_norm[norm] for norm in _EXTREMES)
    return tuple(threats)


def draw(step: Step, n: int) -> int:
    """The threat of this batch, with a chance in proportion to the remembered error."""
    if n == 1:
        return 0
    chances = _errors(step, n).cpu().cumsum(0)
    u = step.shared_rng(_CHOICE).uniform((1,), torch.float64).cpu().reshape(())
    return min(n - 1, int((u * chances[-1] >= chances).sum()))


def _errors(step: Step, n: int) -> Tensor:
    """Remembered error rates ``(n,)``; all the same at first."""
    errors = step.state.get(_ERRORS)
    fresh = torch.full((n,), 0.5, dtype=torch.float64, device=step.model.device)
    return fresh if errors is None or len(errors) != n else errors
