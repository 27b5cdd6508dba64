"""How good the weights are now, on samples that were set apart: the measure that chooses.

The attack here is another and a stronger one than those inside training: APGD on two losses, each
on what the last one left. What it says is still an upper bound; the audit at the end says more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.attacks.apgd import APGD
from holdfast.attacks.base import Attack
from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.pgd import PGD
from holdfast.defenses._certified import least_margins
from holdfast.defenses.base import Batch, Recipe
from holdfast.hardening.samples import Samples
from holdfast.hardening.step import Lent
from holdfast.threat import Threat

_APGD_NORMS = APGD.card.norms
_WATCHED, _WATCH_STEPS = 256, 10  # samples of the cheap checks, and steps of their attack
_GLANCED, _GLANCE_STEPS = 100, 5  # between validations; Wong et al. (2020) look with as many
_SMALLEST_RAMP = 0.05


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracies on the validation samples, without and under attack."""

    clean: float
    robust: float
    n: int
    is_average: bool = False
    verified: float | None = None

    @property
    def value(self) -> float:
        """What the best weights are chosen by; clean accuracy among equals.

        Proven accuracy where the recipe trains bounds (and validation has it), else robust.
        """
        main = self.robust if self.verified is None else self.verified
        return main + 1e-4 * self.clean


@dataclass(frozen=True, slots=True)
class Watch:
    """The cheap checks of a held-out batch, at the radius that the training has reached.

    Attributes:
        ramp: Share of the full radius.
        clean: Accuracy on the unchanged inputs.
        single_step: Under one gradient step, from x or from a random point: the harmless one.
        several_steps: Under PGD.
        noise: Under random changes.
        alignment: Mean cosine between the gradients at x and at a random allowed point
            (Andriushchenko and Flammarion, 2020, arXiv:2007.02617).
        zero_gradients: Share of samples whose gradient is zero everywhere.
    """

    ramp: float
    clean: float
    single_step: float
    several_steps: float
    noise: float
    alignment: float
    zero_gradients: float


def attacks_for(threat: Threat, steps: int) -> list[Attack]:
    """The validation's attacks under a threat."""
    if threat.norm in _APGD_NORMS:
        return [APGD(steps=steps, loss="ce"), APGD(steps=steps, loss="dlr")]
    return [PGD(steps=2 * steps, loss="ce"), PGD(steps=2 * steps, loss="margin")]


def passes_per_sample(threats: tuple[Threat, ...], steps: int) -> float:
    """What a validation costs at most, forward and backward passes."""
    return 1 + sum(2 * a.max_queries for t in threats for a in attacks_for(t, steps))


def validate(
    step: Lent, samples: Samples, n: int, steps: int, *, is_certified: bool = False
) -> Score:
    """Accuracies of the weights in place, under the full radius, on the first n samples.

    Args:
        step: The weights, threats and random numbers.
        samples: Whose validation part is used.
        n: Samples.
        steps: Of the attacks.
        is_certified: Whether to count the proven samples too.
    """
    clean = robust = total = 0
    proofs = 0
    for ids, x, y in samples.validation(n):
        stands = correct(step, x, y)
        clean += int(stands.sum())
        for threat in step.threats:
            for attack in attacks_for(threat, steps):
                rows = stands.nonzero().squeeze(1)
                if len(rows):
                    held = attacked(step, _batch(ids.to(x.device), x, y, rows), attack, threat)
                    stands[rows] = held
        if is_certified:
            rows = stands.nonzero().squeeze(1)
            proofs += int(proven(step, _batch(ids.to(x.device), x, y, rows)).sum())
        robust += int(stands.sum())
        total += len(y)
    verified = proofs / total if is_certified else None
    return Score(clean / total, robust / total, total, verified=verified)


def trains_bounds(recipe: Recipe) -> bool:
    """Whether the recipe, or the one that it wraps, can be proven afterwards."""
    inner = getattr(recipe, "recipe", None)
    return recipe.card.is_certified or (isinstance(inner, Recipe) and trains_bounds(inner))


def proven(step: Lent, batch: Batch) -> Tensor:
    """Whether the bounds of training exclude a change of class ``(n,)`` under every threat.

    Intervals first, CROWN-IBP for what they leave open; without the charge for rounding, so it is
    a measure and not yet a proof.
    """
    full = replace(step, ramp=1.0)
    stands = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
    for threat in step.threats:
        under = replace(full, threats=(threat,))
        held = torch.zeros_like(stands)
        for linear in (0.0, 1.0):
            rows = (~held & stands).nonzero().squeeze(1)
            if not len(rows):
                break
            part = _batch(batch.ids, batch.x, batch.y, rows)
            with torch.no_grad(), under.full_precision():
                lower = least_margins(under, part, part.x, 1.0, linear)
            held[rows] = (lower > 0).all(1)
        stands &= held
    return stands


def attacked(step: Lent, batch: Batch, attack: Attack, threat: Threat, ramp: float = 1.0) -> Tensor:
    """Whether each sample is still right ``(n,)`` after an attack at the (share of the) radius."""
    # The network as it will be used, and the same random numbers at every validation.
    same = replace(step, ramp=ramp, index=0, repeat=0, is_eval=True)
    x_adv = same.attack(batch, attack, threat=threat, keep="best")
    return correct(step, x_adv, batch.y)


def correct(step: Lent, x: Tensor, y: Tensor) -> Tensor:
    """Whether the answers are right ``(n,)``, in evaluation mode."""
    before = step.network.training
    step.network.eval()
    with torch.no_grad():
        answers = torch.cat([step.network(part).argmax(1) for part in x.split(256)])
    step.network.train(before)
    return answers == y


def watch_passes(n_validation: int, *, is_glance: bool = False) -> int:
    """What a watch costs, forward and backward passes."""
    n, steps = (_GLANCED, _GLANCE_STEPS) if is_glance else (_WATCHED, _WATCH_STEPS)
    return min(n, n_validation) * (2 * steps + 13)


def watch(step: Lent, samples: Samples, *, is_glance: bool = False) -> Watch:
    """The cheap checks under the first threat, at the radius that the training has reached.

    Args:
        step: The weights, the threat and random numbers.
        samples: Whose validation part is used.
        is_glance: Fewer samples and steps: cheap enough to look several times per epoch.
    """
    n, pgd_steps = (_GLANCED, _GLANCE_STEPS) if is_glance else (_WATCHED, _WATCH_STEPS)
    ids, x, y = next(iter(samples.validation(n)))
    batch = _batch(ids.to(x.device), x, y, torch.arange(len(x), device=x.device))
    ramp = max(step.ramp, _SMALLEST_RAMP)
    same = replace(step, ramp=ramp, index=0, repeat=0, is_eval=True)
    noisy = same.bind(batch).sample(same.rng(batch, 5))
    at_x, at_noise = (_gradients(same, z, y) for z in (x, noisy))
    norms = at_x.norm(dim=1) * at_noise.norm(dim=1)
    cosine = (at_x * at_noise).sum(1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    several = attacked(step, batch, PGD(steps=pgd_steps), step.threat, ramp)
    return Watch(
        ramp=ramp,
        clean=_mean(correct(step, x, y)),
        single_step=max(_mean(_last_held(same, batch, one)) for one in _single_steps(step.threat)),
        several_steps=_mean(several),
        noise=_mean(correct(step, noisy, y)),
        alignment=_mean(cosine),
        zero_gradients=_mean(at_x.abs().amax(1) == 0),
    )


def _single_steps(threat: Threat) -> list[Attack]:
    one = FGSM() if threat.norm in FGSM.card.norms else PGD(steps=1, random_start=False)
    return [one, PGD(steps=1)]


def _mean(values: Tensor) -> float:
    return float(values.float().mean())


def _last_held(step: Lent, batch: Batch, attack: Attack) -> Tensor:
    return correct(step, step.attack(batch, attack), batch.y)


def _gradients(step: Lent, x: Tensor, y: Tensor) -> Tensor:
    """Gradients of the cross-entropy ``(n, d)``."""

    def loss(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    return step.input_gradient(x, loss).flatten(1)


def _batch(ids: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> Batch:
    no = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    return Batch(x[rows], y[rows], ids[rows], no)
