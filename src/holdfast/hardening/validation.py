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
from holdfast.defenses.base import Batch
from holdfast.hardening.samples import Samples
from holdfast.hardening.step import Lent
from holdfast.threat import Threat

_APGD_NORMS = APGD.card.norms
_WATCHED = 256  # samples of the cheap checks
_SMALLEST_RAMP = 0.05


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracies on the validation samples, without and under attack."""

    clean: float
    robust: float
    n: int
    is_average: bool = False

    @property
    def value(self) -> float:
        """What the best weights are chosen by: robust accuracy, clean accuracy among equals."""
        return self.robust + 1e-4 * self.clean


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


def validate(step: Lent, samples: Samples, n: int, steps: int) -> Score:
    """Accuracies of the weights in place, under the full radius, on the first n samples."""
    clean = robust = total = 0
    for ids, x, y in samples.validation(n):
        stands = correct(step, x, y)
        clean += int(stands.sum())
        for threat in step.threats:
            for attack in attacks_for(threat, steps):
                rows = stands.nonzero().squeeze(1)
                if len(rows):
                    held = attacked(step, _batch(ids.to(x.device), x, y, rows), attack, threat)
                    stands[rows] = held
        robust += int(stands.sum())
        total += len(y)
    return Score(clean / total, robust / total, total)


def attacked(step: Lent, batch: Batch, attack: Attack, threat: Threat, ramp: float = 1.0) -> Tensor:
    """Whether each sample is still right ``(n,)`` after an attack at the (share of the) radius."""
    same = replace(step, ramp=ramp, index=0, repeat=0)  # same random numbers at every validation
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


def watch(step: Lent, samples: Samples, pgd_steps: int = 10) -> Watch:
    """The cheap checks under the first threat, at the radius that the training has reached."""
    ids, x, y = next(iter(samples.validation(_WATCHED)))
    batch = _batch(ids.to(x.device), x, y, torch.arange(len(x), device=x.device))
    ramp = max(step.ramp, _SMALLEST_RAMP)
    same = replace(step, ramp=ramp, index=0, repeat=0)
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
