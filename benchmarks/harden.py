"""What hardening gives within a budget: one case per claim, judged on test images.

A case trains through ``holdfast.harden`` and is one piece under ``build/harden``: stop at any time,
go on with the same command. Nothing is chosen on the test images.

    python benchmarks/harden.py mnist            S(1,7) from scratch, linf:0.3, 20 minutes
    python benchmarks/harden.py --collect        write results/harden.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _common import ROOT, write
from _judging import audited, test_images, training_images, verified
from _models import small

PIECES = ROOT / "build" / "harden"
N_TEST = 1000

Found = dict[str, Any]


def mnist(seed: int, folder: Path) -> Found:
    """MNIST, the small network of the literature from scratch, linf:0.3, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.3", seed, folder)


def certified_small(seed: int, folder: Path) -> Found:
    """MNIST, bounds trained at twice linf:0.1 as in the paper, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.1", seed, folder, recipe="ibp(radius=2.0)")


def certified_large(seed: int, folder: Path) -> Found:
    """MNIST, bounds trained at 4/3 of linf:0.3 as in the paper, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.3", seed, folder, recipe="ibp(radius=1.3333)")


def _twenty_minutes(data: str, threat: str, seed: int, folder: Path, **options: Any) -> Found:
    import holdfast

    began, cpu = time.monotonic(), time.process_time()
    result = holdfast.harden(
        small(1, 7),
        training_images(data),
        threat=threat,
        budget="20min",
        from_scratch=True,
        test=test_images(data, N_TEST),
        seed=seed,
        out=folder / "run",
        **options,
    )
    spent = {"wall_s": round(time.monotonic() - began), "cpu_s": round(time.process_time() - cpu)}
    torch.save(result.module.state_dict(), folder / "weights.pt")
    card = result.card
    return {"threat": threat, "recipe": card.recipe, **spent, **_cost(card)} | judged(
        result.module, data, threat
    )


def _cost(card: Any) -> Found:
    return {
        "recipe_at_end": card.recipe_at_end,
        "reasons": list(card.reasons),
        "epochs": round(card.epochs, 2),
        "passes": card.passes,
        "warnings": [finding.code for finding in card.warnings],
    }


def judged(net: nn.Module, data: str, threat: str) -> Found:
    """Clean and robust accuracy under ``standard``, and what is proven, on the test images."""
    x, y = test_images(data, N_TEST)
    eps = float(threat.partition(":")[2])
    return audited(net.eval(), x, y, threat) | verified(net, x, y, eps)


CASES: dict[str, Callable[[int, Path], Found]] = {
    "mnist": mnist,
    "certified-0.1": certified_small,
    "certified-0.3": certified_large,
}


def piece(name: str, seed: int) -> Found:
    """One case with one seed; kept when done."""
    folder = PIECES / f"{name}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    found = {"case": name, "seed": seed, **CASES[name](seed, folder)}
    found["load"] = round(os.getloadavg()[0], 1)
    done.write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def collect() -> list[Found]:
    """All pieces that were measured."""
    return [json.loads(p.read_text()) for p in sorted(PIECES.glob("*/measured.json"))]


def main() -> None:
    """Run what is asked for, or collect what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--collect", action="store_true", help="write results/harden.json")
    asked = parser.parse_args()
    if unknown := [name for name in asked.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; cases: {', '.join(CASES)}")
    for name in asked.cases:
        for seed in asked.seeds:
            piece(name, seed)
    if asked.collect:
        write("harden", {"n_test": N_TEST}, collect())


if __name__ == "__main__":
    main()
