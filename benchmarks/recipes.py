"""What each recipe buys and costs: clean, robust and proven accuracy, seconds, passes, memory.

Every recipe trains the same network on the same images for the same number of updates (through
``holdfast.hardening``), for several seeds; nothing is chosen on the test images. One run is one
piece under ``build/recipes``: stop at any time, go on with the same command.

    python benchmarks/recipes.py --case fashion --recipes natural pgd trades-1 trades-3 --seeds 0 1
    python benchmarks/recipes.py --list
    python benchmarks/recipes.py --collect
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _common import ROOT, data_folder, images, write
from _models import small
from holdfast.attacks.pgd import PGD
from holdfast.defenses.awp import AWP
from holdfast.defenses.base import Recipe
from holdfast.defenses.crown_ibp import CROWNIBP
from holdfast.defenses.eat import EAT
from holdfast.defenses.ensemble import Ensemble
from holdfast.defenses.fgsm_rs import FGSMRS
from holdfast.defenses.free import Free
from holdfast.defenses.grad_align import GradAlign
from holdfast.defenses.ibp import IBP
from holdfast.defenses.mart import MART
from holdfast.defenses.max import MAX
from holdfast.defenses.mixed import Mixed
from holdfast.defenses.msd import MSD
from holdfast.defenses.mtl_ibp import MTLIBP
from holdfast.defenses.n_fgsm import NFGSM
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.defenses.sabr import SABR
from holdfast.defenses.trades import TRADES

PIECES = ROOT / "build" / "recipes"
BATCH = 200
N_VALIDATION = 300
N_PGD, N_VERIFY = 500, 1000
VERIFIERS = ("interval", "crown")  # cheapest first: the next sees what the last left open


@dataclass(frozen=True)
class Case:
    """A data set, a network and a threat.

    Attributes:
        data: Name of the data.
        n_train: Images to train on; those after them are the extra ones.
        threat: What to withstand.
        epochs: Passes over the images.
        steps: Of inner attacks.
        rate: Learning rate at its peak.
        settings: Other settings of the training.
        extra_threats: For recipes against several.
        n_standard: Test images for the audit.
    """

    data: str
    n_train: int
    threat: str
    epochs: int
    steps: int
    rate: float = 3e-3
    settings: dict[str, Any] = field(default_factory=dict)
    extra_threats: tuple[str, ...] = ()
    n_standard: int = 100

    @property
    def eps(self) -> float:
        """The radius."""
        from holdfast.threat import parse_threat

        return float(parse_threat(self.threat).eps)  # type: ignore[attr-defined]


CASES = {
    "fashion": Case("fashion_mnist", 10_000, "linf:0.1", 6, 4, extra_threats=("l1:8",)),
    "fashion-long": Case("fashion_mnist", 30_000, "linf:0.1", 10, 5, n_standard=300),
    "fashion-few": Case("fashion_mnist", 2_000, "linf:0.1", 40, 4, n_standard=200),
    "mnist": Case("mnist", 20_000, "linf:0.3", 6, 5, extra_threats=("l1:10",)),
    "cifar": Case("cifar10", 4_000, "linf:2/255", 15, 5, 2e-3),
    "certified-0.1": Case("mnist", 59_000, "linf:0.1", 12, 5, 2e-3, {"ramp_share": 0.6}),
    "certified-0.3": Case("mnist", 59_000, "linf:0.3", 16, 5, 2e-3, {"ramp_share": 0.6}),
}


@dataclass(frozen=True)
class Run:
    """A recipe and what belongs to it beside the loss.

    Attributes:
        recipe: For so many inner steps.
        settings: Of the training.
        extra_share: Part of every batch that comes from images the others do not see.
        is_plain: Whether it trains against the first threat alone.
    """

    recipe: Callable[[int], Recipe]
    settings: dict[str, Any] = field(default_factory=dict)
    extra_share: float = 0.0
    is_plain: bool = True


def pgd(steps: int) -> PGD:
    """The inner attack of all recipes with several steps."""
    return PGD(steps=steps)


def nudged(steps: int) -> PGD:
    """The same for recipes that bring their own start."""
    return PGD(steps=steps, random_start=False)


def trades(beta: float) -> Run:
    """TRADES at one point of its trade-off."""
    return Run(lambda steps: TRADES(beta=beta, attack=nudged(steps)))


RUNS = {
    # One round alone: with several, the weights would be those of the best robust accuracy.
    "natural": Run(lambda _: Mixed(clean=1.0), {"updates_per_round": 10**6}),
    "mixed": Run(lambda steps: Mixed(attack=pgd(steps))),
    "pgd": Run(lambda steps: PGDTraining(pgd(steps))),
    "pgd+ema": Run(lambda steps: PGDTraining(pgd(steps)), {"average": "ema", "ema_decay": 0.99}),
    "pgd+awp": Run(lambda steps: AWP(PGDTraining(pgd(steps)), gamma=0.01)),
    "pgd+extra": Run(lambda steps: PGDTraining(pgd(steps)), {}, 0.5),
    "trades-1": trades(1.0),
    "trades-3": trades(3.0),
    "trades-6": trades(6.0),
    "trades-12": trades(12.0),
    "trades+awp": Run(lambda steps: AWP(TRADES(attack=nudged(steps)), gamma=0.005)),
    "mart": Run(lambda steps: MART(attack=nudged(steps))),
    "fgsm_rs": Run(lambda _: FGSMRS()),
    "n_fgsm": Run(lambda _: NFGSM()),
    "grad_align": Run(lambda _: GradAlign()),
    "free": Run(lambda _: Free(m=4)),
    "ensemble": Run(lambda steps: Ensemble(attack=pgd(steps))),
    "max": Run(lambda steps: MAX(pgd(steps)), is_plain=False),
    "msd": Run(lambda steps: MSD(steps=steps), is_plain=False),
    "eat": Run(lambda _: EAT(), is_plain=False),
    "ibp": Run(lambda _: IBP()),
    # Gowal et al. train at 0.2 for 0.1 and at 0.4 for 0.3.
    "ibp-2": Run(lambda _: IBP(radius=2.0)),
    "ibp-1.33": Run(lambda _: IBP(radius=4 / 3)),
    "crown_ibp": Run(lambda _: CROWNIBP()),
    "sabr": Run(lambda steps: SABR(attack=pgd(steps))),
    "mtl_ibp": Run(lambda steps: MTLIBP(attack=pgd(steps))),
}


# ---------------------------------------------------------------------- data


def training_images(case: Case) -> tuple[Tensor, Tensor]:
    """All training images that a case may use, ``uint8`` scaled to [0, 1], and their labels."""
    if case.data == "cifar10":
        stored = np.load(data_folder() / "cifar10" / "cifar10_train_first4000_lossless.npz")
        return _cifar(stored)
    from holdfast.modalities import load

    data = load(str(data_folder() / case.data / "train-images-idx3-ubyte.gz"))
    return data.fetch(range(len(data)))


def test_images(case: Case, n: int) -> tuple[Tensor, Tensor]:
    """The first test images."""
    if case.data != "cifar10":
        return images(case.data, n)
    x, y = _cifar(np.load(data_folder() / "cifar10" / "cifar10_test_300_lossless.npz"))
    return x[:n], y[:n]


def _cifar(stored: Any) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(stored[name]) for name in ("x", "y"))
    x = x.permute(0, 3, 1, 2) if x.shape[-1] == 3 else x
    return x.float().contiguous() / (255 if x.dtype == torch.uint8 else 1), y.long()


def network(case: Case) -> nn.Module:
    """Untrained; the training makes its weights from the seed."""
    return small(3, 8) if case.data == "cifar10" else small(1, 7)


# ---------------------------------------------------------------------- one run


def train(case: Case, run: Run, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network and what it cost."""
    from holdfast.hardening.harden import harden

    x, y = training_images(case)
    recipe = run.recipe(case.steps)
    epochs = case.epochs * (1 - run.extra_share) / recipe.repeats  # the same number of updates
    per_batch = BATCH * (1 - run.extra_share)
    updates = int(epochs * (case.n_train - N_VALIDATION) / per_batch)
    chosen: dict[str, Any] = {
        "batch_size": BATCH,
        "n_updates": updates,
        "optimiser": "adam",
        "learning_rate": case.rate,
        "weight_decay": 0.0,
        "average": "none",
        "n_validation": N_VALIDATION,
        "validation_steps": 10,
        "updates_per_round": max(1, updates // 3),
        "updates_per_check": max(1, updates // 3),
    }
    more: dict[str, Any] = {}
    if run.extra_share:
        more = {"extra": (x[case.n_train : 2 * case.n_train], y[case.n_train : 2 * case.n_train])}
        chosen["extra_share"] = run.extra_share
    threats = [case.threat, *(() if run.is_plain else case.extra_threats)]
    result = harden(
        network(case),
        (x[: case.n_train], y[: case.n_train]),
        threat=threats,
        recipe=recipe,
        epochs=epochs,
        from_scratch=True,
        audit=False,
        seed=seed,
        out=folder,
        **more,
        **{**chosen, **case.settings, **run.settings},
    )
    card = result.card
    cost = {
        "recipe": card.recipe,
        "recipe_at_end": card.recipe_at_end,
        "updates": card.updates,
        "passes": card.passes,
        "seconds": round(card.training_seconds, 1),
        "peak_memory_mb": round(card.peak_memory_mb),
        "warnings": [finding.code for finding in card.warnings],
    }
    return result.module.eval(), cost


def measure(case: Case, net: nn.Module) -> dict[str, Any]:
    """Accuracies on test images, by ever stronger attacks and by proofs."""
    import holdfast

    x, y = test_images(case, N_PGD)
    with torch.no_grad():
        clean = net(x).argmax(1) == y
    x_adv = PGD(steps=50)(net, x, y, case.threat)
    with torch.no_grad():
        held = clean & (net(x_adv).argmax(1) == y)
    with tempfile.TemporaryDirectory() as folder:
        data = (x[: case.n_standard], y[: case.n_standard])
        report = holdfast.audit(net, data, case.threat, curve_steps=0, out=folder)
    return {
        "clean": _rate(clean),
        "pgd50": _rate(held),
        "standard": report.robust_accuracy.value,
        "n": [len(x), min(case.n_standard, len(x))],
        **verified(case, net),
    }


def step_ms(case: Case, run: Run, net: nn.Module) -> float:
    """Processor milliseconds of an update with one batch: a cost that other jobs do not change."""
    from holdfast.hardening.step import own_batch, own_step

    net = copy.deepcopy(net)
    step, recipe = own_step(net, case.threat), run.recipe(case.steps)
    batch = own_batch(*test_images(case, BATCH))
    recipe.update(step, batch)
    began = time.process_time()
    for step.index in range(3):
        recipe.update(step, batch)
    return round((time.process_time() - began) / 3 * 1000, 1)


def verified(case: Case, net: nn.Module) -> dict[str, Any]:
    """Proven accuracy by each bound, in float64 with all rounding errors, and its seconds."""
    from holdfast.verifiers.bounds import bounds, margins

    found: dict[str, Any] = {}
    n = N_VERIFY if case.data == "mnist" else case.n_standard
    x, y = test_images(case, n)
    with torch.no_grad():
        clean = net(x).argmax(1) == y
    proven = torch.zeros_like(clean)
    for method in VERIFIERS:
        open_ = (clean & ~proven).nonzero().squeeze(1)
        began = time.process_time()
        if len(open_):
            rows = margins(y[open_], 10)
            with torch.no_grad():
                lower = bounds(net, x[open_], case.eps, method=method, C=rows).lower
            proven[open_] = (lower > 0).all(1)
        found[f"verified_{method}"] = _rate(proven)
        found[f"verified_{method}_s"] = round(time.process_time() - began, 1)
    return found


def _rate(holds: Tensor) -> float:
    return round(float(holds.float().mean()), 4)


def piece(name: str, run: str, seed: int) -> dict[str, Any]:
    """One trained and measured network; both steps are kept as they are done."""
    folder = PIECES / f"{name}-{run}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    net, cost = train(CASES[name], RUNS[run], seed, folder)
    found: dict[str, Any] = {"case": name, "run": run, "seed": seed, **cost}
    found |= {"step_ms": step_ms(CASES[name], RUNS[run], net)} | measure(CASES[name], net)
    found["load"] = round(os.getloadavg()[0], 1)
    done.write_text(json.dumps(found))
    print(found, flush=True)
    return found


# ---------------------------------------------------------------------- the table


def collect() -> list[dict[str, Any]]:
    """All pieces, a row per case and recipe: means and extremes over seeds."""
    pieces = [json.loads(p.read_text()) for p in sorted(PIECES.glob("*/measured.json"))]
    rows = []
    for name in CASES:
        for run in RUNS:
            own = [p for p in pieces if (p["case"], p["run"]) == (name, run)]
            if own:
                rows.append(_row(name, run, own))
    return rows


MEASURES = ("clean", "pgd50", "standard", "verified_interval", "verified_crown")


def _row(name: str, run: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "run": run, "recipe": pieces[0]["recipe"]}
    row["images"] = pieces[0]["n"]
    row |= {"seeds": [p["seed"] for p in pieces], "n_seeds": len(pieces)}
    for measure_ in MEASURES:
        values = [p[measure_] for p in pieces]
        row[measure_] = round(statistics.fmean(values), 4)
        row[f"{measure_}_by_seed"] = values
    for cost in ("step_ms", "seconds", "updates", "passes", "peak_memory_mb"):
        values = [p[cost] for p in pieces if p.get(cost) is not None]
        row[cost] = round(statistics.fmean(values), 1) if values else None
    row["warnings"] = sorted({w for p in pieces for w in p["warnings"]})
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table as text."""
    print(
        f"{'case':15}{'run':13}{'seeds':>6}" + "".join(f"{m:>19}" for m in MEASURES) + "   step_ms"
    )
    for row in rows:
        values = "".join(f"{row[m]:19.3f}" for m in MEASURES)
        print(f"{row['case']:15}{row['run']:13}{len(row['seeds']):6}{values}{row['step_ms']:10.0f}")


def main() -> None:
    """Run what is asked for, or collect what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="fashion")
    parser.add_argument("--recipes", nargs="*", choices=RUNS, default=["natural", "pgd"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--collect", action="store_true", help="write results/recipes.json")
    parser.add_argument("--list", action="store_true", help="what there is to run")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join([f"cases: {', '.join(CASES)}", f"recipes: {', '.join(RUNS)}"]))
        return
    if not asked.collect:
        for seed in asked.seeds:
            for run in asked.recipes:
                piece(asked.case, run, seed)
    rows = collect()
    show(rows)
    if asked.collect:
        settings = {name: vars(case) for name, case in CASES.items()}
        write(
            "recipes",
            {"cases": settings, "images": {"pgd50": N_PGD, "verified on mnist": N_VERIFY}},
            rows,
        )


if __name__ == "__main__":
    main()
