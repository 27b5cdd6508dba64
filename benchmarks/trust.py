"""Planted defences are seen through, and honest models are trusted: verdicts at benchmark scale.

Each defence wraps or retrains an undefended MNIST network. Asked: robust accuracy within two
points of the undefended network's, and "don't trust" on the first number, for the right
reason. Two of them are compared at a second radius, where the undefended network keeps little. Each
honest model must be trusted, and what the checks cost there is measured;
``mnist_fgsm`` is not honest: FGSM training masked its gradients in part. *Adaptive* is what an
attacker leaves who was told of the defence and built for it; *fixed draws*, for random resizing,
what no attacker could break, by an estimate from below (:mod:`_adaptive`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import holdfast
from _adaptive import fixed_draws, left
from _common import RESULTS, data_folder, images, write
from _validation import CASES, network, samples
from holdfast.contracts import masking
from holdfast.modalities import load

EPS, MIDDLE, NEAR = "linf:0.3", "linf:0.15", "linf:0.1"
N_TRAIN = 6000
WIDE = 48  # channels of the first layer: k winners of few values hide little
CLOSE = 0.02 + 1e-9
SHORT = (
    {"attack": "apgd", "loss": "ce", "steps": 100},
    {"attack": "apgd", "loss": "dlr", "steps": 50, "n_targets": 3},
    {"attack": "square", "queries": 500},
)
"""Small enough for a laptop; ``--cascade standard`` for the real one."""
PUBLISHED = (
    "mnist_clean",
    "mnist_pgd",
    "mnist_convex",
    "mnist_fgsm",
    "cifar_cnn_a_mix",
    "cifar_base",
    "fashion_residual_pgd",
    "fashion_transformer_trades",
)


def plain(act: Callable[[], nn.Module] = nn.ReLU, width: int = 16) -> nn.Sequential:
    """A network with an activation of choice, for defences that must be trained."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, width, 4, 2, 1), act(), nn.Conv2d(width, 2 * width, 4, 2, 1), act()]
    hidden = 6 * width
    layers += [nn.Flatten(), nn.Linear(2 * width * 49, hidden), act(), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers)


def training() -> tuple[Tensor, Tensor]:
    """Training images of MNIST."""
    data = load(str(data_folder() / "mnist" / "train-images-idx3-ubyte.gz"))
    return data.fetch(range(N_TRAIN))


def trained(act: Callable[[], nn.Module], x: Tensor, y: Tensor, width: int = 16) -> nn.Sequential:
    """A plain network, trained without defence but for its activation."""
    net = plain(act, width)
    masking.fit(net, x, nn.functional.one_hot(y, 10).float(), epochs=4)
    return net


@dataclass(frozen=True, slots=True)
class Planted:
    """A planted defence.

    Attributes:
        make: Builds, and where needed trains, the network.
        reasons: Checks of which one at least must be among the verdict's reasons.
        base: The undefended network that it is compared with.
        threat: Smaller where a defence hides nothing that a whole linf:0.3 would not show.
    """

    make: Callable[[], nn.Module]
    reasons: tuple[str, ...]
    base: str = "undefended"
    threat: str = EPS


def winners() -> nn.Module:
    """The activation of k winners take all, as sparse as its authors'."""
    return masking.WinnersTakeAll(0.1)


def defences() -> dict[str, Planted]:
    """Every planted defence, after the undefended networks they are compared with."""
    base = network("mnist_clean")
    x, y = training()
    hard, zero = "hard_steps", "zero_gradients"
    rough = ("shattered_gradients", "misleading_gradients")
    return {
        "undefended": Planted(lambda: base, ()),
        "undefended, trained here": Planted(lambda: trained(nn.ReLU, x, y), ()),
        "undefended, near": Planted(lambda: base, (), threat=NEAR),
        "undefended, trained here, near": Planted(lambda: trained(nn.ReLU, x, y), (), threat=NEAR),
        "undefended, wide, near": Planted(lambda: trained(nn.ReLU, x, y, WIDE), (), threat=NEAR),
        "undefended, middle": Planted(lambda: base, (), threat=MIDDLE),
        "undefended, wide, middle": Planted(
            lambda: trained(nn.ReLU, x, y, WIDE), (), threat=MIDDLE
        ),
        "quantised input": Planted(lambda: masking.QuantisedInput(base), (hard, zero)),
        "step function": Planted(lambda: masking.StepInput(base), (hard, zero)),
        "fast wave": Planted(lambda: masking.RippledInput(base), rough, "undefended, near", NEAR),
        "random resizing": Planted(
            lambda: masking.RandomResizing(base), ("randomness",), "undefended, near", NEAR
        ),
        "inner solver": Planted(lambda: masking.InnerSolver(base), ("inner_solver",)),
        "distillation at 100": Planted(
            lambda: masking.distilled(plain, x, y, epochs=4),
            ("saturated_softmax", zero),
            "undefended, trained here",
        ),
        "sparsified activations": Planted(
            lambda: masking.sparsified(trained(nn.ReLU, x, y), x[:500]),
            (hard,),
            "undefended, trained here, near",
            NEAR,
        ),
        "k winners take all": Planted(
            lambda: trained(winners, x, y, WIDE), (hard, *rough), "undefended, wide, near", NEAR
        ),
        "k winners take all, middle": Planted(
            lambda: trained(winners, x, y, WIDE), (hard, *rough), "undefended, wide, middle", MIDDLE
        ),
        "random resizing, middle": Planted(
            lambda: masking.RandomResizing(base), ("randomness",), "undefended, middle", MIDDLE
        ),
        "compressed input": Planted(
            lambda: masking.CompressedInput(base), (hard, zero), "undefended, near", NEAR
        ),
        "dithered input": Planted(
            lambda: masking.DitheredInput(base),
            ("randomness", hard, zero),
            "undefended, near",
            NEAR,
        ),
    }


def measured(net: nn.Module, data: tuple[Tensor, Tensor], threat: str, cascade: Any) -> dict:
    """One audit, and what it says."""
    report = holdfast.audit(net, data, threat, cascade=cascade, curve_steps=0, verify="off")
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
        "passes": f"{trust.n_passes / len(report.samples):.1f}, {result.passes_per_sample:.0f}",
        "seconds": sum(s.seconds for s in report.sessions),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--cascade", default="short")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--again", action="store_true", help="measure what is there anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cascade = SHORT if arguments.cascade == "short" else arguments.cascade
    settings = {"n": arguments.n, "cascade": arguments.cascade}
    file = "trust" if arguments.cascade == "short" else f"trust_{arguments.cascade}"
    rows = {} if arguments.again else kept(file, settings)
    cases = defences()
    wanted = {*arguments.only, *(cases[name].base for name in arguments.only if name in cases)}
    for name, planted in cases.items():
        if wanted and name not in wanted:
            continue
        data = images("mnist", arguments.n)
        if name not in rows:
            found = measured(planted.make(), data, planted.threat, cascade)
            rows[name] = {"case": name, "kind": "planted" if planted.reasons else "honest", **found}
            if planted.reasons:
                rows[name] |= compared(found, rows[planted.base], planted.reasons)
            print(rows[name], flush=True)
            write(file, settings, list(rows.values()))
        if planted.reasons and planted.threat != EPS and "adaptive" not in rows[name]:
            rows[name] |= told(planted, data)
            print(name, rows[name]["adaptive"], rows[name].get("fixed_draws"), flush=True)
            write(file, settings, list(rows.values()))
    for name in PUBLISHED:
        if name not in rows and (not arguments.only or name in arguments.only):
            stages = "standard" if name == "mnist_fgsm" else cascade  # short ones see nothing there
            found = measured(network(name), samples(name, arguments.n), CASES[name].threat, stages)
            rows[name] = {"case": name, "kind": "published", **found}
            print(rows[name], flush=True)
            write(file, settings, list(rows.values()))


def told(planted: Planted, data: tuple[Tensor, Tensor]) -> dict[str, object]:
    """What an attacker leaves who knows the defence, and what nobody could break."""
    net, eps = planted.make(), float(planted.threat.partition(":")[2])
    rows = left(net, *data, eps)
    found: dict[str, object] = {"adaptive": None if rows is None else len(rows) / len(data[1])}
    if rows is not None and isinstance(net, masking.RandomResizing):
        found["fixed_draws"] = fixed_draws(net, *data, eps, rows)
    return found


def compared(found: dict, base: dict, reasons: tuple[str, ...]) -> dict[str, object]:
    """Whether a planted defence was seen through, and for the right reason."""
    number = base["robust_accuracy"]
    return {
        "undefended_robust_accuracy": number,
        "unmasked": found["robust_accuracy"] <= number + CLOSE,
        "hid": round((found["first_number"] or found["robust_accuracy"]) - number, 4),
        "right_reason": bool(set(reasons) & set(found["because"])),
    }


def kept(name: str, settings: dict[str, object]) -> dict[str, dict]:
    """The rows of the results file with the same settings, by case."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = found.get("settings") == settings
    return {row["case"]: row for row in found["rows"]} if same else {}


if __name__ == "__main__":
    main()
