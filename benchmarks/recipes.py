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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from _common import RESULTS, ROOT, commit, write
from _judging import audited, is_right, rate, test_images, training_images, under_pgd, verified
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
N_VALIDATION = 300
N_PGD, N_VERIFY = 500, 1000


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
        batch: Images per update.
        n_extra: Images that recipes with extra data see beside; None: as many as the others.
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
    batch: int = 200
    n_extra: int | None = None

    @property
    def eps(self) -> float:
        """The radius."""
        from holdfast.threat import parse_threat

        return float(parse_threat(self.threat).eps)  # type: ignore[attr-defined]


CASES = {
    "fashion": Case("fashion_mnist", 10_000, "linf:0.1", 6, 4, extra_threats=("l1:8",)),
    "fashion-long": Case("fashion_mnist", 30_000, "linf:0.1", 10, 5, n_standard=300),
    "fashion-few": Case("fashion_mnist", 2_000, "linf:0.1", 40, 4, n_standard=200),
    # Few images and many passes: what averages, perturbed weights and more data are said to be for.
    "fashion-claims": Case(
        "fashion_mnist", 2_000, "linf:0.1", 50, 4, 2e-3, n_standard=500, batch=100, n_extra=8_000
    ),
    "mnist": Case("mnist", 20_000, "linf:0.3", 6, 5, extra_threats=("l1:10",)),
    "mnist-two-steps": Case("mnist", 20_000, "linf:0.3", 3, 2, n_standard=200, batch=64),
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
    # Steps as large as the radius, the attack's own choice for two of them.
    "pgd-corners": Run(lambda steps: PGDTraining(PGD(steps=steps, step_size=0.3))),
    "pgd+ema": Run(lambda steps: PGDTraining(pgd(steps)), {"average": "ema", "ema_decay": 0.99}),
    "pgd+awp": Run(lambda steps: AWP(PGDTraining(pgd(steps)), gamma=0.01)),
    "pgd+extra": Run(lambda steps: PGDTraining(pgd(steps)), {}, 0.5),
    "pgd+ema-long": Run(lambda s: PGDTraining(pgd(s)), {"average": "ema", "ema_decay": 0.995}),
    "pgd+awp-small": Run(lambda steps: AWP(PGDTraining(pgd(steps)), gamma=0.005)),
    "pgd+extra-most": Run(lambda steps: PGDTraining(pgd(steps)), {}, 0.7),
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


# ---------------------------------------------------------------------- one run


def network(case: Case) -> nn.Module:
    """Untrained; the training makes its weights from the seed."""
    return small(3, 8) if case.data == "cifar10" else small(1, 7)


def train(case: Case, run: Run, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network and what it cost."""
    from holdfast.hardening.harden import harden

    x, y = training_images(case.data)
    recipe = run.recipe(case.steps)
    epochs = case.epochs * (1 - run.extra_share) / recipe.repeats  # the same number of updates
    per_batch = case.batch * (1 - run.extra_share)
    updates = int(epochs * (case.n_train - N_VALIDATION) / per_batch)
    chosen: dict[str, Any] = {
        "batch_size": case.batch,
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
        last = case.n_train + (case.n_extra or case.n_train)
        more = {"extra": (x[case.n_train : last], y[case.n_train : last])}
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
    x, y = test_images(case.data, max(N_PGD, case.n_standard))
    held = under_pgd(net, x[:N_PGD], y[:N_PGD], case.threat)
    n = N_VERIFY if case.data == "mnist" else 100
    found = audited(net, x[: case.n_standard], y[: case.n_standard], case.threat)
    return found | {
        "clean": rate(is_right(net, x, y)),
        "pgd50": rate(held),
        "n": [len(held), found["n_standard"]],
        **verified(net, *test_images(case.data, n), case.eps),
    }


def step_ms(case: Case, run: Run, net: nn.Module) -> float:
    """Processor milliseconds of an update with one batch: a cost that other jobs do not change."""
    from holdfast.hardening.step import own_batch, own_step

    net = copy.deepcopy(net)
    step, recipe = own_step(net, case.threat), run.recipe(case.steps)
    batch = own_batch(*test_images(case.data, case.batch))
    recipe.update(step, batch)
    began = time.process_time()
    for step.index in range(3):
        recipe.update(step, batch)
    return round((time.process_time() - began) / 3 * 1000, 1)


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
    found |= {"load": round(os.getloadavg()[0], 1), "commit": commit()}
    done.write_text(json.dumps(found))
    print(found, flush=True)
    return found


# ---------------------------------------------------------------------- the table


def collect() -> list[dict[str, Any]]:
    """All pieces, a row per case and recipe: means over seeds. What was written before stays."""
    old = {(row["case"], row["run"]): row for row in _written()}
    pieces = [json.loads(p.read_text()) for p in sorted(PIECES.glob("*/measured.json"))]
    rows = []
    for name in CASES:
        for run in RUNS:
            own = [p for p in pieces if (p["case"], p["run"]) == (name, run)]
            if own or (name, run) in old:
                rows.append(_row(name, run, own) if own else old[name, run])
    return rows


def _written() -> list[dict[str, Any]]:
    """The rows of the last collection, each with the commit that it was measured on."""
    path = RESULTS / "recipes.json"
    content = json.loads(path.read_text()) if path.is_file() else {"rows": [], "commit": ""}
    return [{"commit": content["commit"], **row} for row in content["rows"]]


MEASURES = ("clean", "pgd50", "standard", "verified_interval", "verified_crown")


def _row(name: str, run: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "run": run, "recipe": pieces[0]["recipe"]}
    row |= {"images": pieces[0]["n"], "commit": pieces[-1].get("commit", "")}
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
