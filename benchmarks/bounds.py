"""Bounds beside auto_LiRPA's own code: how tight, and at how many CPU-seconds.

    python benchmarks/bounds.py --auto-lirpa DIR [--networks a,b] [--methods a,b] [--images 8]

DIR is a checkout of github.com/Verified-Intelligence/auto_LiRPA. Both sides bound the same margins
of the same images over the same boxes, in turns, on one thread; seconds are the process's CPU time.
Ours are proofs (float64, rounding charged); theirs are float32. What that costs is told by two more
sides at equal precision: ours in float32 without correction, as theirs, and theirs in float64
(not for optimised slopes, which take them minutes). Iterations of optimised slopes are equal.
Building the graphs is not part of the seconds. With ``--write`` rows of earlier runs with as many
images are kept, so that it can be measured piece by piece; each row carries its commit.
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
from _common import RESULTS, commit, write

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


def theirs(case: Case, method: str, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    module = copy.deepcopy(case.net).to(dtype)
    points, lower, upper, rows = (t.to(dtype) for t in (case.x, case.lower, case.upper, case.C))
    net = BoundedModule(module, torch.zeros_like(points), device="cpu")
    net.set_bound_opts({"optimize_bound_args": {"iteration": STEPS, "enable_beta_crown": False}})
    x = BoundedTensor(points, PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper))

    def run() -> Tensor:
        found = net.compute_bounds(
            x=(x,), C=rows, method=METHODS[method], bound_upper=False, return_A=False
        )
        return found[0].detach()

    return run


Side = Callable[[Case, str], Callable[[], Tensor]]
SIDES: dict[str, Side] = {
    "ours": ours,
    "theirs": theirs,
    "ours_float32": lambda case, method: ours(case, method, torch.float32),
    "theirs_float64": lambda case, method: theirs(case, method, torch.float64),
}


def measure(case: Case, method: str) -> dict[str, Timed]:
    sides = {name: Timed(None, []) for name in SIDES}
    if method == "alpha-crown":
        del sides["theirs_float64"]
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, side in sides.items():
        try:
            run = SIDES[name](case, method)
            run()  # imports and caches
            runs[name] = run
        except Exception as error:
            side.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    for _ in range(ROUNDS):
        if sum(sum(side.seconds) for side in sides.values()) > ENOUGH:
            break
        for name, run in runs.items():
            begin = time.process_time()
            sides[name].lower = run().double()
            sides[name].seconds.append(time.process_time() - begin)
    return sides


def row(case: Case, method: str) -> dict[str, Any]:
    sides = measure(case, method)
    s = {name: min(side.seconds, default=None) for name, side in sides.items()}
    result: dict[str, Any] = {"network": case.name, "method": method, "images": len(case.x)}
    result |= {f"{name}_s": seconds for name, seconds in s.items()}
    result |= {f"{name}_error": side.error for name, side in sides.items() if side.error}
    result |= {
        "ratio": ratio(s["ours"], s["theirs"]),
        "ratio_float32": ratio(s["ours_float32"], s["theirs"]),
        "ratio_float64": ratio(s["ours"], s.get("theirs_float64")),
    }
    us, them = sides["ours"].lower, sides["theirs"].lower
    if us is not None and them is not None:
        scale = them.abs().clamp(min=1e-2 * float(them.abs().max()))
        gap = (us - them) / scale
        result |= {
            "looser_by": float((-gap).max()), "tighter_by": float(gap.max()),
            "rows": gap.numel(), "rows_looser": int((gap < -1e-4).sum()),
            "mean_ours": float(us.mean()), "mean_theirs": float(them.mean()),
        }  # fmt: skip
    return result | {"commit": commit()}


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs is not None else None


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
