"""AutoAttack's own code and its copies behind one function each: ``(net, x, y, case) -> x_adv``.

Nothing is stubbed and nothing is corrected: every library runs as its users run it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from _validation import Case

Outcome = tuple[Tensor, dict[str, int]]
"""Changed inputs, and counts of the tool's own."""
Tool = Callable[[nn.Module, Tensor, Tensor, Case], Outcome]
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def reference(
    folder: Path, version: str = "standard", seed: int = 0, batch: int | None = None
) -> Tool:
    """The authors' code in ``folder`` (a checkout of fra31/auto-attack), all inputs in a batch."""

    def run(net: nn.Module, x: Tensor, y: Tensor, case: Case) -> Outcome:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        from autoattack import AutoAttack  # type: ignore[import-not-found]

        attack = AutoAttack(
            net,
            norm=NORMS[case.norm],
            eps=case.eps,
            seed=seed,
            version=version,
            verbose=False,
            device=str(x.device),
        )
        return attack.run_standard_evaluation(x, y, bs=batch or len(x)), {}

    return run


def torchattacks(net: nn.Module, x: Tensor, y: Tensor, case: Case) -> Outcome:
    """What torchattacks calls AutoAttack."""
    import torchattacks as library

    attack = library.AutoAttack(net, norm=NORMS[case.norm], eps=case.eps, seed=0)
    return attack(x, y), {}


class _Whole(nn.Module):
    """A network as one layer: ART runs those of a sequence itself, past the hooks that count."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def art(net: nn.Module, x: Tensor, y: Tensor, case: Case) -> Outcome:
    """What ART calls AutoAttack."""
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        _Whole(net),
        nn.CrossEntropyLoss(),
        x.shape[1:],
        10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    norm = {"linf": np.inf, "l2": 2, "l1": 1}[case.norm]
    attack = AutoAttack(classifier, norm=norm, eps=case.eps, batch_size=len(x))
    return torch.from_numpy(np.asarray(attack.generate(x.numpy(), y.numpy()))).to(x), {}
