"""Bounds beside auto_LiRPA's own code: how tight, and at how many CPU-seconds.

    python benchmarks/bounds.py --auto-lirpa DIR [--networks a,b] [--methods a,b] [--images 8]

DIR is a checkout of github.com/Verified-Intelligence/auto_LiRPA. Both sides bound the same margins
of the same images over the same boxes, in turns, on one thread; seconds are the process's CPU time.
Ours are proofs (float64, rounding charged); theirs are float32. ``ours_float32_s`` tells
what that costs: ours in float32 without correction, as theirs. Iterations of optimised slopes are
equal. Building the graphs is not part of the seconds. With ``--write`` rows of earlier runs with as
many images are kept, so that it can be measured piece by piece.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _bound_networks import NETWORKS, Case
from _common import RESULTS, write

METHODS = {
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "CROWN-Optimized",
}
STEPS = 20
ROUNDS = 3
ENOUGH = 30.0
"""CPU-seconds after which no further turn begins."""


@dataclass
class Timed:
    """Lower bounds of one side, and its seconds of every turn."""

    lower: Tensor | None
    seconds: list[float]
    error: str = ""


def stub() -> None:
    """Packages that auto_LiRPA imports for a cache's place, drawings and progress, if absent."""
    missing: dict[str, dict[str, Any]] = {
        "appdirs": {"user_data_dir": lambda *_: tempfile.gettempdir()},
        "graphviz": {"Digraph": object},
        "tqdm": {"tqdm": lambda items, **_: items},
    }
    for name, members in missing.items():
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            vars(module).update(members)
            sys.modules[name] = module


def ours(case: Case, method: str, dtype: torch.dtype = torch.float64) -> Callable[[], Tensor]:
    from holdfast.graphs.torch_capture import capture
    from holdfast.verifiers.bounds import lower_over
    from holdfast.verifiers.regions import BoxRegion

    graph = capture(case.net, case.x, fold=True).to(dtype)
    region = BoxRegion(case.lower.to(dtype), case.upper.to(dtype))

    def run() -> Tensor:
        with torch.no_grad():
            return lower_over(graph, region, case.C.to(dtype), method, STEPS)[0]

    return run


def ours_float32(case: Case, method: str) -> Callable[[], Tensor]:
    return ours(case, method, torch.float32)


def theirs(case: Case, method: str) -> Callable[[], Tensor]:
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    net = BoundedModule(copy.deepcopy(case.net), torch.zeros_like(case.x), device="cpu")
    net.set_bound_opts({"optimize_bound_args": {"iteration": STEPS, "enable_beta_crown": False}})
    ball = PerturbationLpNorm(norm=float("inf"), x_L=case.lower, x_U=case.upper)
    x = BoundedTensor(case.x, ball)

    def run() -> Tensor:
        found = net.compute_bounds(
            x=(x,), C=case.C, method=METHODS[method], bound_upper=False, return_A=False
        )
        return found[0].detach()

    return run


def measure(case: Case, method: str) -> tuple[Timed, Timed, Timed]:
    sides = [Timed(None, []) for _ in range(3)]
    makers = (ours, theirs, ours_float32)
    runs: list[Callable[[], Tensor] | None] = []
    for side, make in zip(sides, makers, strict=True):
        try:
            run = make(case, method)
            run()  # imports and caches
            runs.append(run)
        except Exception as error:
            side.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            runs.append(None)
    for _ in range(ROUNDS):
        if sum(sum(side.seconds) for side in sides) > ENOUGH:
            break
        for side, run in zip(sides, runs, strict=True):
            if run is None:
                continue
            begin = time.process_time()
            side.lower = run().double()
            side.seconds.append(time.process_time() - begin)
    return sides[0], sides[1], sides[2]


def row(case: Case, method: str) -> dict[str, Any]:
    us, them, single = measure(case, method)
    result: dict[str, Any] = {
        "network": case.name, "method": method, "images": len(case.x),
        "ours_s": min(us.seconds, default=None), "theirs_s": min(them.seconds, default=None),
        "ours_float32_s": min(single.seconds, default=None),
        "ours_error": us.error or single.error, "theirs_error": them.error,
    }  # fmt: skip
    if us.lower is not None and them.lower is not None:
        scale = them.lower.abs().clamp(min=1e-2 * float(them.lower.abs().max()))
        gap = (us.lower - them.lower) / scale
        result |= {
            "ratio": result["ours_s"] / result["theirs_s"],
            "ratio_float32": min(single.seconds) / result["theirs_s"] if single.seconds else None,
            "looser_by": float((-gap).max()), "tighter_by": float(gap.max()),
            "share_looser": float((gap < -1e-4).float().mean()),
            "mean_ours": float(us.lower.mean()), "mean_theirs": float(them.lower.mean()),
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--auto-lirpa", type=Path, required=True, help="checkout of auto_LiRPA")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(options.auto_lirpa))
    stub()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = kept(options.images) if options.write else {}
    for name in options.networks.split(","):
        case = NETWORKS[name](options.images)
        for method in options.methods.split(","):
            rows[name, method] = found = row(case, method)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
            print(shown, flush=True)
            if options.write:
                settings = {"steps": STEPS, "rounds": ROUNDS, "images": options.images}
                write("bounds", settings, list(rows.values()))


def kept(images: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the results file with as many images, by network and method."""
    path = RESULTS / "bounds.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("settings", {}).get("images") != images:
        return {}
    return {(r["network"], r["method"]): r for r in found["rows"]}


if __name__ == "__main__":
    main()
