"""Our minimal attacks in AttackBench (Cina et al., 2025, arXiv:2404.19460).

AttackBench calls every attack as ``attack(model=, inputs=, labels=, targets=, targeted=)`` with
inputs in [0, 1] and takes changed inputs in [0, 1] back; its wrapped model counts the passes.
:func:`attack` gives such a callable. To enter it into a checkout, make a package
``attack_evaluation/attacks/holdfast`` whose ``configs.py`` holds ``from
holdfast.adapters.attackbench import _prefix, _wrapper`` and, as its readme asks, a config and a
getter function, e.g.::

    def hf_default():
        name, source, threat_model, budget = "default", "holdfast", "l2", 1000

    def get_hf_default(threat_model: str, budget: int):
        return attack(threat_model, budget)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from holdfast.attacks.base import Attack
from holdfast.errors import DataError
from holdfast.evaluation.distances import minimal_distances

_prefix = "hf"
AttackBenchAttack = Callable[..., Tensor]


def attack(
    norm: str = "l2",
    budget: int = 1000,
    attacks: Sequence[str | Attack] | None = None,
    seed: int = 0,
) -> AttackBenchAttack:
    """A callable with AttackBench's contract.

    Args:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``: AttackBench's ``threat_model``.
        budget: Forward plus backward passes per sample. A few more are spent before the first step,
            to find out what the model's output means.
        attacks: Names or attacks; None: the default ones.
        seed: Of all random numbers.
    """

    def run(
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        targets: Tensor | None = None,
        targeted: bool = False,
    ) -> Tensor:
        if targeted and targets is None:
            raise DataError("targeted is True, but there are no targets: give a class per sample.")
        found = minimal_distances(
            model,
            inputs,
            labels,
            norm=norm,
            attacks=attacks,
            budget=budget,
            targets=targets if targeted else None,
            seed=seed,
        )
        return found.x_adv

    return run


def _wrapper(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    attack: AttackBenchAttack,
    targets: Tensor | None = None,
    targeted: bool = False,
) -> Tensor:
    """What AttackBench calls with the getter's result."""
    return attack(model=model, inputs=inputs, labels=labels, targets=targets, targeted=targeted)
