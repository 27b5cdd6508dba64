"""What the engine costs: PGD through it against a bare loop, and the peers' loops beside both.

The bare loop is the least that PGD can do: forward, backward to the input, step, projection, and
one last forward pass to see the result. Everyone runs all steps on the same batch, in turns
(A B C A B C ...); the figure is the ratio of the medians. Holdfast checks a model once, before it
first attacks it; the row "new model" pays for these checks every time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import seconds, write
from _models import preact_resnet18
from _peers import PEERS, Setting, available, peer_versions
from holdfast import PGD, Model

EPS, STEP_SIZE = 8 / 255, 2 / 255


def bare_loop(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD with nothing around it."""
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(net(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0, 1)
    with torch.no_grad():
        net(x_adv)
    return x_adv


def contestants(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], Any]]:
    """Everyone, each with the same batch and the same number of steps."""
    attack, model = PGD(steps=steps, step_size=STEP_SIZE), Model(net)
    options: dict[str, Any] = {"stop": "budget", "batch_size": len(x)}
    found: dict[str, Callable[[], Any]] = {
        "bare loop": lambda: bare_loop(net, x, y, steps),
        "holdfast": lambda: attack(model, x, y, f"linf:{EPS}", **options),
        "holdfast, new model": lambda: attack(net, x, y, f"linf:{EPS}", **options),
    }
    setting = Setting(net, EPS, steps, STEP_SIZE, len(x))
    for name, (_, attacks) in PEERS.items():
        if available(name) is None:
            run = attacks["pgd"](setting)
            found[name] = lambda run=run: run(x, y)
    return found


def measure(device: str, batch: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """One row per contestant: median seconds and their ratio to the bare loop's."""
    net = preact_resnet18().to(device)
    x = torch.rand(batch, 3, 32, 32, device=device)
    with torch.no_grad():
        y = net(x).argmax(1)
    runs = contestants(net, x, y, steps)
    for run in runs.values():
        run()  # warm up: kernels chosen, memory allocated
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    base = statistics.median(times["bare loop"])
    return [
        {
            "device": device,
            "library": name,
            "seconds": round(statistics.median(values), 3),
            "ratio": round(statistics.median(values) / base, 3),
            "all_seconds": [round(value, 3) for value in values],
        }
        for name, values in times.items()
    ]


def main() -> None:
    """Measure and write ``results/engine_cost.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for device in ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
        rows += measure(device, options.batch, options.steps, options.rounds)
    settings = vars(options) | {"model": "pre-activation ResNet-18, 3x32x32", "eps": EPS}
    write("engine_cost", settings | {"peers": peer_versions()}, rows)


if __name__ == "__main__":
    main()
