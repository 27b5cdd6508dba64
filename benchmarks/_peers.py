"""PGD and APGD of other libraries behind one function each: ``(x, y) -> x_adv`` in batches.

Every library gets its own idea of a batch: torchattacks and foolbox attack what they are given, so
they are given ``batch`` samples at a time; ART cuts batches itself.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from _common import versions

Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """One attack with the same numbers for everyone; linf, inputs in [0, 1]."""

    net: nn.Module
    eps: float
    steps: int
    step_size: float
    batch: int


def _in_batches(attack: Run, batch: int) -> Run:
    def run(x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([attack(a, b) for a, b in parts])

    return run


def torchattacks_pgd(s: Setting) -> Run:
    import torchattacks

    attack = torchattacks.PGD(s.net, eps=s.eps, alpha=s.step_size, steps=s.steps)
    return _in_batches(attack, s.batch)


def torchattacks_apgd(s: Setting) -> Run:
    import torchattacks

    return _in_batches(torchattacks.APGD(s.net, eps=s.eps, steps=s.steps), s.batch)


def foolbox_pgd(s: Setting) -> Run:
    import foolbox

    device = next(s.net.parameters()).device
    model = foolbox.PyTorchModel(s.net, bounds=(0, 1), device=device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=s.step_size, steps=s.steps)
    return _in_batches(lambda x, y: attack(model, x, y, epsilons=s.eps)[1], s.batch)


def _art(s: Setting, make: Callable[..., object], x: Tensor, y: Tensor) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    device = "gpu" if x.is_cuda else "cpu"
    classifier = PyTorchClassifier(
        s.net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type=device
    )
    attack = make(classifier, eps=s.eps, max_iter=s.steps, batch_size=s.batch, verbose=False)
    x_adv = attack.generate(x.cpu().numpy(), y.cpu().numpy())  # type: ignore[attr-defined]
    return torch.from_numpy(np.asarray(x_adv)).to(x)


def art_pgd(s: Setting) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch as Attack

    return partial(_art, s, partial(Attack, eps_step=s.step_size, num_random_init=1))


def art_apgd(s: Setting) -> Run:
    from art.attacks.evasion import AutoProjectedGradientDescent as Attack

    options = {"eps_step": 2 * s.eps, "nb_random_init": 1, "loss_type": "cross_entropy"}
    return partial(_art, s, partial(Attack, **options))


PEERS: dict[str, tuple[str, dict[str, Callable[[Setting], Run]]]] = {
    "torchattacks": ("torchattacks", {"pgd": torchattacks_pgd, "apgd": torchattacks_apgd}),
    "foolbox": ("foolbox", {"pgd": foolbox_pgd}),
    "ART": ("adversarial-robustness-toolbox", {"pgd": art_pgd, "apgd": art_apgd}),
}
MODULES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art"}


def available(name: str) -> str | None:
    """None where the peer can be imported, else why not."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    try:
        importlib.import_module(MODULES[name])
    except Exception as error:  # whatever a peer raises on import is its own affair
        return f"{type(error).__name__}: {error}"
    return None


def peer_versions() -> dict[str, str]:
    """Installed versions by PyPI name."""
    return versions(*(package for package, _ in PEERS.values()))
