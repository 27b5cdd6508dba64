"""What refilled slots save: passes per sample of APGD-100 until every sample is settled.

Two ways to spend the same attack on the same samples, counted by hooks on the network: fixed
batches that run all their steps, and slots that are refilled as samples fall.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _common import counted, images, seconds, success_rate, write
from _models import trained
from holdfast import APGD, Model

EPS = 0.3


def fixed(attack: APGD, net: nn.Module, x: Tensor, y: Tensor, batch: int, stop: str) -> Tensor:
    """The attack on one batch after the other; the model is checked once."""
    model = Model(net)
    parts = zip(x.split(batch), y.split(batch), strict=True)
    options = {"batch_size": batch, "stop": stop}
    return torch.cat([attack(model, a, b, f"linf:{EPS}", **options) for a, b in parts])


def ways(
    attack: APGD, net: nn.Module, x: Tensor, y: Tensor, batch: int
) -> dict[str, Callable[[], Tensor]]:
    """Fixed batches and refilled slots."""
    return {
        "fixed batch, all steps": lambda: fixed(attack, net, x, y, batch, "budget"),
        "refilled slots": lambda: attack(net, x, y, f"linf:{EPS}", batch_size=batch),
    }


def measure(model: str, n: int, batch: int, steps: int) -> list[dict[str, Any]]:
    """One row per way."""
    net = trained(model)
    x, y = images("mnist", n)
    rows = []
    for name, run in ways(APGD(steps=steps), net, x, y, batch).items():
        out: list[Tensor] = []
        with counted(net) as count:
            spent = seconds(lambda run=run, out=out: out.append(run()))
        row = {
            "model": model,
            "way": name,
            "passes_per_sample": round(count.passes / n, 2),
            "success": round(success_rate(net, out[0], x, y, EPS), 4),
            "seconds": round(spent, 2),
        }
        rows.append(row)
        print(row)
    for row in rows:
        row["share_of_fixed"] = round(row["passes_per_sample"] / rows[0]["passes_per_sample"], 4)
    return rows


def main() -> None:
    """Measure and write ``results/retirement.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    rows = []
    for model in ("mnist_clean", "mnist_fgsm"):
        rows += measure(model, options.n, options.batch, options.steps)
    write("retirement", vars(options) | {"eps": EPS, "attack": "APGD, cross-entropy"}, rows)


if __name__ == "__main__":
    main()
