"""PGD and APGD beside those of torchattacks, foolbox and ART.

Same model, samples, radius, steps, step size and batch. Passes are counted by hooks on the network,
success is judged by one function for all (``_common.success_rate``), seconds are the median of
several rounds in which everyone takes turns.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from _common import Count, counted, images, seconds, success_rate, write
from _models import trained
from _peers import PEERS, Run, Setting, available, peer_versions
from holdfast import APGD, PGD

CASES = ((("mnist_clean"), 0.3), (("mnist_pgd"), 0.3))


def _holdfast(attack: Any, s: Setting, stop: str) -> Run:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return attack(s.net, x, y, f"linf:{s.eps}", batch_size=s.batch, stop=stop)

    return run


def contestants(kind: str, s: Setting) -> dict[str, Run]:
    """Everyone who offers this attack; Holdfast also without stopping early, for the comparison."""
    ours = PGD(steps=s.steps, step_size=s.step_size) if kind == "pgd" else APGD(steps=s.steps)
    found = {
        "holdfast": _holdfast(ours, s, "fooled"),
        "holdfast, all steps": _holdfast(ours, s, "budget"),
    }
    for name, (_, attacks) in PEERS.items():
        if kind in attacks and available(name) is None:
            found[name] = attacks[kind](s)
    return found


def measure(kind: str, s: Setting, x: Tensor, y: Tensor, rounds: int) -> list[dict[str, Any]]:
    """One row per contestant."""
    runs = contestants(kind, s)
    times: dict[str, list[float]] = {name: [] for name in runs}
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for name, run in runs.items():
            torch.manual_seed(turn)
            out: list[Tensor] = []
            with counted(s.net) as count:
                times[name].append(seconds(lambda run=run, out=out: out.append(run(x, y))))
            rows[name] = _row(count, len(x)) | {
                "success": round(success_rate(s.net, out[0].detach(), x, y, s.eps), 4)
            }
    return [
        {"library": name, **row, "seconds": round(statistics.median(times[name]), 2)}
        for name, row in rows.items()
    ]


def _row(count: Count, n: int) -> dict[str, Any]:
    return {
        "forward_per_sample": round(count.forward / n, 1),
        "backward_per_sample": round(count.backward / n, 1),
        "passes_per_sample": round(count.passes / n, 1),
    }


def main() -> None:
    """Measure and write ``results/peers.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="test images per model")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--pgd-steps", type=int, default=40)
    parser.add_argument("--apgd-steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    x, y = images("mnist", options.n)
    rows = []
    for model, eps in CASES:
        for kind, steps in (("pgd", options.pgd_steps), ("apgd", options.apgd_steps)):
            setting = Setting(trained(model), eps, steps, 0.01, options.batch)
            for row in measure(kind, setting, x, y, options.rounds):
                rows.append({"model": model, "attack": f"{kind}-{steps}", **row})
                print(rows[-1])
    missing = {name: reason for name in PEERS if (reason := available(name))}
    settings = vars(options) | {"eps": 0.3, "step_size": 0.01, "peers": peer_versions()}
    write("peers", settings | {"could_not_run": missing, "not_offered": "foolbox: APGD"}, rows)


if __name__ == "__main__":
    main()
