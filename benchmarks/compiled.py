"""What ``torch.compile`` brings to an attack's step, beside its own cost: is it worth an option?

    python benchmarks/compiled.py [--device cpu] [--rounds 8]

A step is a forward and a backward pass to the input at a fixed number of rows. Both ways run in
turns; the figure is the ratio of the least times. ``pays_after`` is the number of steps that win
back what compiling cost.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what a first run costs

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import write
from _models import preact_resnet18
from _validation import network

ROWS = {"mnist_fgsm": 128, "mnist_clean": 64, "fashion_transformer": 64, "preact_resnet18": 16}
"""Rows of a step; the last network has random weights, the others are those of the validation."""


def step(net: nn.Module, x: Tensor) -> None:
    """Logits, the loss of class 0, and its gradient."""
    x = x.detach().requires_grad_(True)
    loss = F.cross_entropy(net(x), torch.zeros(len(x), dtype=torch.long, device=x.device))
    torch.autograd.grad(loss, x)
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(net: nn.Module, x: Tensor) -> float:
    """Of one step."""
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    began = clock()
    step(net, x)
    return clock() - began


def measure(name: str, device: str, rounds: int) -> dict[str, Any]:
    """One network, as it is and compiled."""
    net = preact_resnet18() if name == "preact_resnet18" else network(name)
    net = net.to(device).requires_grad_(False)
    channels, side = (3, 32) if name == "preact_resnet18" else (1, 28)
    x = torch.rand(ROWS[name], channels, side, side, device=device)
    # "reduce-overhead" replays CUDA graphs
    compiled: Any = torch.compile(net, mode="reduce-overhead" if device == "cuda" else None)
    began = time.perf_counter()
    step(compiled, x)
    cost = time.perf_counter() - began
    step(net, x)
    turns = [(seconds(net, x), seconds(compiled, x)) for _ in range(rounds)]
    eager, quick = (min(times) for times in zip(*turns, strict=True))
    return {
        "model": name,
        "rows": len(x),
        "eager_ms": round(1e3 * eager, 2),
        "compiled_ms": round(1e3 * quick, 2),
        "times_as_fast": round(eager / quick, 2),
        "compile_s": round(cost, 1),
        "pays_after": round(cost / (eager - quick)) if quick < eager else None,
    }


def main() -> None:
    """Measure and write ``results/compiled.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    functorch.donated_buffer = False  # several gradients of one forward pass, as attacks ask for
    rows = [measure(name, options.device, options.rounds) for name in ROWS]
    write("compiled", vars(options), rows)


if __name__ == "__main__":
    main()
