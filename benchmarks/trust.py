"""Planted defences are seen through, and honest models are trusted: verdicts at benchmark scale.

Each defence wraps or retrains the undefended MNIST network. Asked: robust accuracy within two
points of the undefended network's, and "don't trust" on the first number. Each honest model must be
trusted, and what the checks cost there is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import holdfast
from _common import data_folder, images, write
from _validation import CASES, network, samples
from holdfast.contracts import masking
from holdfast.modalities import load

EPS = "linf:0.3"
N_TRAIN = 6000
SHORT = (
    {"attack": "apgd", "loss": "ce", "steps": 100},
    {"attack": "apgd", "loss": "dlr", "steps": 50, "n_targets": 3},
    {"attack": "square", "queries": 500},
)
"""Small enough for a laptop; ``--cascade standard`` for the real one."""
HONEST = ("mnist_clean", "mnist_pgd", "mnist_convex", "mnist_fgsm", "cifar_cnn_a_mix", "cifar_base")


def plain(act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """A small network with an activation of choice, for defences that must be trained."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 4, 2, 1), act(), nn.Conv2d(16, 32, 4, 2, 1), act(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * 49, 100), act(), nn.Linear(100, 10))


def training() -> tuple[Tensor, Tensor]:
    """Training images of MNIST."""
    data = load(str(data_folder() / "mnist" / "train-images-idx3-ubyte.gz"))
    return data.fetch(range(N_TRAIN))


def trained(act: Callable[[], nn.Module], x: Tensor, y: Tensor) -> nn.Sequential:
    """A plain network, trained without defence but for its activation."""
    net = plain(act)
    masking.fit(net, x, nn.functional.one_hot(y, 10).float(), epochs=4)
    return net


def defences() -> dict[str, Callable[[], nn.Module]]:
    """Every planted defence."""
    base = network("mnist_clean")
    x, y = training()
    return {
        "undefended": lambda: base,
        "quantised input": lambda: masking.QuantisedInput(base),
        "step function": lambda: masking.StepInput(base),
        "fast wave": lambda: masking.RippledInput(base),
        "random resizing": lambda: masking.RandomResizing(base),
        "inner solver": lambda: masking.InnerSolver(base),
        "distillation at 100": lambda: masking.distilled(plain, x, y, epochs=4),
        "sparsified activations": lambda: masking.sparsified(trained(nn.ReLU, x, y), x[:500]),
        "k winners take all": lambda: trained(lambda: masking.WinnersTakeAll(0.1), x, y),
    }


def measured(net: nn.Module, data: tuple[Tensor, Tensor], threat: str, cascade: Any) -> dict:
    """One audit, and what it says."""
    report = holdfast.audit(net, data, threat, cascade=cascade, curve_steps=0)
    result = report.threats[threat]
    trust = result.trust
    return {
        "threat": threat,
        "clean_accuracy": report.clean_accuracy.value,
        "robust_accuracy": result.robust_accuracy.value,
        "first_number": trust.first.value if trust.first else None,
        "verdict": trust.confidence.value,
        "because": [s.check for s in trust.reasons],
        "lowered": [[s.attack, s.before, s.after] for s in trust.lowered],
        "passes_per_sample": result.passes_per_sample,
        "check_passes_per_sample": trust.n_passes / len(report.samples),
        "seconds": sum(s.seconds for s in report.sessions),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--cascade", default="short")
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    cascade = SHORT if arguments.cascade == "short" else arguments.cascade
    rows = []
    for name, make in defences().items():
        if not arguments.only or name in arguments.only:
            found = measured(make(), images("mnist", arguments.n), EPS, cascade)
            rows.append({"case": name, "kind": "planted", **found})
            print(rows[-1], flush=True)
    for name in HONEST:
        if not arguments.only or name in arguments.only:
            found = measured(network(name), samples(name, arguments.n), CASES[name].threat, cascade)
            rows.append({"case": name, "kind": "published", **found})
            print(rows[-1], flush=True)
    write("trust", {"n": arguments.n, "cascade": arguments.cascade}, rows)


if __name__ == "__main__":
    main()
