"""Pieces that several recipes share: one gradient step, a start beside the input, other radii."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.attacks.pgd import PGD
from holdfast.defenses.base import Batch, Step
from holdfast.errors import PlanError, ThreatError
from holdfast.perturbations.ball import Ball
from holdfast.rows import like
from holdfast.threat import AllowedSet, Threat

_OF_TWO = 0.75  # of the radius
_BEYOND = 1e9  # a radius larger than any domain


def stepped(step: Step, batch: Batch, allowed: AllowedSet, start: Tensor, size: float) -> Tensor:
    """``start + size radius d`` with the steepest direction d of the loss at ``start``.

    Not projected: recipes differ in that. ``size`` is in units of the radius.
    """
    gradient = step.input_gradient(start, batch.cross_entropy)
    direction = allowed.direction(gradient, start)
    return start + like(size * allowed.radius, direction) * direction


def gentle(attack: Attack, threat: Threat) -> Attack:
    """The attack with smaller steps where it has two, in linf, and no step size of its own.

    With the attack's own, as large as the radius, both steps end in corners and training learns
    less: see docs/design/recipes.md.
    """
    if not isinstance(attack, PGD) or attack.step_size is not None or attack.steps != 2:
        return attack
    if not isinstance(threat, Ball) or threat.norm != "linf" or isinstance(threat.eps, Tensor):
        return attack
    return replace(attack, step_size=_OF_TWO * threat.eps)


def in_domain(allowed: AllowedSet, z: Tensor) -> Tensor:
    """``z`` cut with the domain's box alone, not with the ball."""
    whole = torch.full_like(allowed.radius, _BEYOND)
    return allowed.resized(whole).project(z)


def beside(step: Step, batch: Batch, size: float) -> Tensor:
    """``x + size n`` with standard normal n, inside the allowed set.

    Where a divergence from the answer at x is to be maximised: at x itself its gradient is zero.
    """
    noise = step.rng(batch).normal(tuple(batch.x.shape[1:]), batch.x.dtype)
    return step.bind(batch).project(batch.x + size * noise)


def scaled(threat: Threat, factor: float) -> Ball:
    """The same ball with its radius times ``factor``.

    Raises:
        ThreatError: where the threat is no norm ball.
    """
    if not isinstance(threat, Ball):
        raise ThreatError(
            f"This recipe needs a norm ball, not {threat.describe()}. Use one such as linf:8/255, "
            "or pgd_training, which takes any threat."
        )
    return Ball(threat.norm, threat.eps * factor)


def without_labels(batch: Batch, y: Tensor) -> Batch:
    """The batch with other labels, each for the whole of its sample."""
    return replace(batch, y=y, y_other=None, share=None)


def require(name: str, option: str, value: float, low: float, high: float = torch.inf) -> None:
    """Refuse an option outside ``[low, high]``.

    Raises:
        PlanError: names the recipe, the value and the range.
    """
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == torch.inf else f"from {low:g} to {high:g}"
        raise PlanError(f"{option} of {name} is {value}; allowed is a number {allowed}.")
