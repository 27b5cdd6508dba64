"""Alarms: how a training goes wrong, told by numbers, and what to do about it.

Every alarm is a plain function of measurements. The loop acts on what they return: it goes back to
the last good weights, and on with a safer recipe, a lower learning rate or a longer ramp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.defenses.base import Recipe
from holdfast.hardening.validation import Score, Watch

_GAP = 0.25  # single-step minus several-step accuracy; 0.05 to 0.15 in sound training
_FALL = 0.2  # of the several-step accuracy on a held-out batch; Wong et al. (2020) take the same
_CHANCE_MARGIN = 0.03
_LEAK = 0.03
_OVERFIT = 0.03
_OVERFIT_ROUNDS = 3
_NO_GRADIENT = 0.5

Action = Literal["switch", "slower", "tell"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that went wrong.

    Attributes:
        code: Stable name.
        text: In plain words, with the numbers.
        action: ``switch``: roll back, and go on with a safer recipe; ``slower``: roll back, and go
            on with a lower rate and a longer ramp; ``tell``: say so and go on.
    """

    code: str
    text: str
    action: Action


def not_finite(loss: float) -> Alarm:
    """The loss or a weight is NaN or infinite."""
    return Alarm(
        "not_finite",
        f"The loss became {loss}. The training goes on from the last good weights at a lower rate.",
        "slower",
    )


def collapse(now: Watch, good: Watch | None, is_single_step: bool) -> Alarm | None:
    """Catastrophic overfitting: robust to one step, broken by several (Wong et al., 2020).

    The gap between both is larger than sound training ever shows, or, at the same radius, the
    accuracy under several steps fell while that under one step did not.
    """
    gap = now.single_step - now.several_steps
    known = good is not None and good.ramp == now.ramp
    fell = good.several_steps - now.several_steps if good is not None and known else 0.0
    held = good is not None and now.single_step >= good.single_step - _FALL / 2
    if not (is_single_step and gap > _GAP) and not (fell > _FALL and held):
        return None
    return Alarm(
        "catastrophic_overfitting",
        f"Catastrophic overfitting: {now.single_step:.0%} of a held-out batch withstand one "
        f"gradient step, {now.several_steps:.0%} withstand several (gradients at neighbouring "
        f"points agree to {now.alignment:.2f}).",
        "switch",
    )


def label_leaking(now: Watch, chance: float) -> Alarm | None:
    """Accuracy under FGSM above clean accuracy (Kurakin et al., 2017, arXiv:1611.01236)."""
    if now.single_step <= now.clean + _LEAK or now.clean < chance + 2 * _CHANCE_MARGIN:
        return None
    return Alarm(
        "label_leaking",
        f"Label leaking: inputs changed by one gradient step are answered better "
        f"({now.single_step:.0%}) than unchanged ones ({now.clean:.0%}).",
        "switch",
    )


def masked_gradients(now: Watch) -> Alarm | None:
    """Random changes do more than gradient steps, or there are no gradients to follow."""
    if now.zero_gradients > _NO_GRADIENT and now.clean > now.several_steps - _LEAK:
        return Alarm(
            "masked_gradients",
            f"Masked gradients: they are exactly zero on {now.zero_gradients:.0%} of a held-out "
            "batch, so that gradient attacks, in training too, are blind there.",
            "switch",
        )
    if now.noise < now.several_steps - 2 * _LEAK:
        return Alarm(
            "masked_gradients",
            f"Masked gradients: random changes leave {now.noise:.0%} right, gradient steps of the "
            f"same size {now.several_steps:.0%}: the gradients point nowhere.",
            "switch",
        )
    return None


def chance_level(score: Score, chance: float, was_above: bool, progress: float) -> Alarm | None:
    """The answers are no better than always giving the commonest class.

    At the very start of training from scratch that is no news; after that it is.
    """
    if score.clean > chance + _CHANCE_MARGIN or (not was_above and progress < 0.1):
        return None
    return Alarm(
        "chance_level",
        f"The clean accuracy is {score.clean:.1%}, no better than chance ({chance:.1%}).",
        "slower",
    )


def robust_overfitting(history: Sequence[Score]) -> Alarm | None:
    """Robust accuracy falls from its best for several rounds (Rice et al., 2020)."""
    if len(history) <= _OVERFIT_ROUNDS:
        return None
    best = max(score.robust for score in history)
    last = history[-_OVERFIT_ROUNDS:]
    if any(score.robust > best - _OVERFIT for score in last):
        return None
    return Alarm(
        "robust_overfitting",
        f"Robust overfitting: validation accuracy under attack has been below its best "
        f"({best:.1%}) by {best - max(s.robust for s in last):.1%} or more for "
        f"{_OVERFIT_ROUNDS} rounds. The best weights are kept. More data, averaged weights or "
        "weight perturbation help.",
        "tell",
    )


def is_single_step(recipe: Recipe) -> bool:
    """Whether the recipe, or the one that it wraps, can collapse as single-step training does."""
    inner = getattr(recipe, "recipe", None)
    return recipe.card.is_single_step or (isinstance(inner, Recipe) and is_single_step(inner))
