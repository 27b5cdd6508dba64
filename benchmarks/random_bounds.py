"""Bounds of 200 random networks: no crash at batches of 1 to 64, and sound against sampling.

    python benchmarks/random_bounds.py [--networks 200] [--auto-lirpa DIR] [--write]

With a checkout of auto_LiRPA, its CROWN is run on the same networks, and crashes and looseness
are counted on both sides.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _common import write
from _random_networks import random_network

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")


def outside(net: nn.Module, x: Tensor, eps: float, lower: Tensor, upper: Tensor) -> float:
    """How far outputs in float64 at random points leave the bounds; negative if never."""
    net = copy.deepcopy(net).double()
    d = torch.rand(60, *x.shape, dtype=torch.float64) * 2 - 1
    d = torch.where(torch.rand(60, *[1] * x.dim()) < 0.5, d.sign(), d)
    points = (x.double() + eps * d).clamp(0, 1)
    values = net(points.flatten(0, 1)).reshape(60, len(x), -1)
    return float(torch.maximum(lower - values, values - upper).max())


def ours(net: nn.Module, x: Tensor, eps: float) -> dict[str, Any]:
    from holdfast.proving import as_graph, bounds

    found: dict[str, Any] = {}
    graph = as_graph(net, x)
    for method in METHODS:
        steps = 5 if len(x) < 64 else 1
        lower, upper = (
            b.detach() for b in bounds(graph, x, f"linf:{eps}", method=method, steps=steps)
        )
        found[method] = outside(net, x, eps, lower, upper)
        if method == "crown":
            found["lower"] = lower
    return found


def theirs(net: nn.Module, x: Tensor, eps: float) -> Tensor:
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    bounded = BoundedModule(copy.deepcopy(net), torch.zeros_like(x), device="cpu")
    ball = PerturbationLpNorm(
        norm=float("inf"), x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1)
    )
    return bounded.compute_bounds(x=(BoundedTensor(x, ball),), method="CROWN")[0].detach()


def row(seed: int, compare: bool) -> dict[str, Any]:
    kind, net, x = random_network(seed)
    eps = (0.01, 0.05, 0.2)[seed % 3]
    result: dict[str, Any] = {"seed": seed, "kind": kind, "batch": len(x), "eps": eps}
    try:
        found = ours(net, x, eps)
        result |= {m: found[m] for m in METHODS}
    except Exception as error:
        return result | {"error": f"{type(error).__name__}: {str(error)[:150]}"}
    if compare:
        try:
            other = theirs(net, x, eps).double()
            gap = (found["lower"] - other) / other.abs().clamp(min=0.1 * float(other.abs().max()))
            result |= {"looser_by": float((-gap).max()), "tighter_by": float(gap.max())}
        except Exception as error:
            result["theirs_error"] = f"{type(error).__name__}: {str(error)[:150]}"
    return result


def summed(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Counts over all networks."""
    done = [r for r in rows if "error" not in r]
    compared = [r for r in done if "looser_by" in r]
    return {
        "networks": len(rows),
        "crashes": len(rows) - len(done),
        "unsound": sum(max(r[m] for m in METHODS) > 1e-9 for r in done),
        "compared": len(compared),
        "their_crashes": sum("theirs_error" in r for r in rows),
        "looser": sum(r["looser_by"] > 1e-4 for r in compared),
        "tighter": sum(r["tighter_by"] > 1e-4 for r in compared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--auto-lirpa", type=Path, help="checkout of auto_LiRPA to compare with")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.auto_lirpa:
        from bounds import stub

        sys.path.insert(0, str(options.auto_lirpa))
        stub()
    rows = []
    for seed in range(options.networks):
        rows.append(row(seed, options.auto_lirpa is not None))
        bad = "error" in rows[-1] or max(rows[-1].get(m, 0) for m in METHODS) > 1e-9
        if bad or rows[-1].get("looser_by", 0) > 1e-4 or "theirs_error" in rows[-1]:
            print(rows[-1], flush=True)
        if seed % 20 == 19:
            print(summed(rows), flush=True)
    summary = summed(rows)
    print(summary)
    if options.write:
        write("random_bounds", summary, rows)


if __name__ == "__main__":
    main()
