r"""Smallest changes: ours against Foolbox and adversarial-library, at equal passes.

    python benchmarks/minimal.py --advlib DIR [--n 56] [--passes 200 1000] [--models ...]
    python benchmarks/minimal.py --advlib DIR --images 1000 --passes 200 --near 1.3 \
        --name minimal_most

The first asks all attacks on a few samples; the second those that came near the best of the peers
there (``--near``), on as many of the first 1,000 images as are answered rightly.

Comparisons that the results file has are kept, so that a run goes on where the last one stopped;
``--again`` measures ours anew beside the peers' runs that are there.

Every attack is given the same passes (forward plus backward, per sample) and keeps what it returns;
hooks on the network count what it really spent. A change counts if the network, asked again, is
fooled inside [0, 1]; else it is infinite. Ours is ``holdfast.minimal_distances`` with its default
attacks; the peers' figure is that of the best of all their attacks, chosen for each model and norm
after the fact: a competitor that nobody has. Networks marked ``choosing`` were looked at while the
default attacks were chosen.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _minimal_peers as peers
from _common import RESULTS, Count, counted, write
from _validation import network, samples
from holdfast.attacks._hyperplane import length
from holdfast.engine.preflight import preflight
from holdfast.evaluation.distances import minimal_distances
from holdfast.model import Model

CHOOSING = ("mnist_fgsm", "cifar_cnn_a_mix", "mnist_convex")
CHECKING = ("mnist_clean", "cifar_resnet2b")
NORMS = ("linf", "l2", "l1", "l0")
SLACK = 1.1  # of the passes: a peer that spends more is not at equal passes
EIGHT = 8  # rows: batches are cut to multiples; what larger blocks are padded with is counted


def sized(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """The size of every change that fools ``(n,)``; infinite for the others."""
    with torch.no_grad():
        wrong = net(x_adv).argmax(1) != y
    wrong &= ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return torch.where(wrong, length((x_adv - x).double(), norm), torch.inf)


def row(name: str, size: Tensor, count: Count, seconds: float) -> dict[str, Any]:
    """What is written of one run."""
    ordered = size.sort().values
    median = float(ordered[(len(ordered) - 1) // 2])
    found = {
        "attack": name,
        "median": round(median, 5) if median < torch.inf else None,
        "failed": int(size.isinf().sum()),
        "passes": round(count.passes / len(size), 1),
        "seconds": round(seconds, 1),
    }
    print("  ", found, flush=True)
    return found


def ours(net: nn.Module, x: Tensor, y: Tensor, norm: str, passes: int) -> dict[str, Any]:
    """The default attacks; the checks before the first call are made beforehand."""
    model = Model(net)
    with model.session():
        preflight(model, x[:16], y[:16], y)
    start = time.perf_counter()
    with counted(net) as count:
        found = minimal_distances(model, x, y, norm=norm, budget=passes)
    size = sized(net, x, y, found.x_adv, norm)
    return row("holdfast", size, count, time.perf_counter() - start)


def theirs(
    name: str, run: peers.Run, net: nn.Module, x: Tensor, y: Tensor, norm: str, passes: int
) -> dict[str, Any]:
    """One peer; what it raises is its own affair, and is written down."""
    start = time.perf_counter()
    try:
        with counted(net) as count:
            x_adv = run(net, x.clone(), y.clone(), passes)
    except Exception as error:
        print("  ", name, type(error).__name__, error, flush=True)
        return {"attack": name, "error": f"{type(error).__name__}: {error}"[:200]}
    return row(name, sized(net, x, y, x_adv.detach(), norm), count, time.perf_counter() - start)


def compare(
    name: str, norm: str, passes: int, images: int, n: int, libraries: dict, known: dict | None
) -> dict[str, Any]:
    """All attacks on one network in one norm with one budget; ``known``: as compared before."""
    print(name, norm, passes, flush=True)
    net = network(name)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x, y = samples(name, images)
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:n]
    x, y = (t[right][: len(right) // EIGHT * EIGHT] for t in (x, y))
    old = {r["attack"]: r for r in known["runs"]} if known else {}
    runs = libraries[norm].items()
    rows = [old.get("holdfast") or ours(net, x, y, norm, passes)]
    rows += [
        old[peer] if is_there(old, peer) else theirs(peer, run, net, x, y, norm, passes)
        for peer, run in runs
    ]
    equal = [r for r in rows[1:] if r.get("median") is not None and r["passes"] <= SLACK * passes]
    best = min(equal, key=itemgetter("median"), default=None)
    ratio = rows[0]["median"] / best["median"] if best and rows[0]["median"] else None
    return {
        "model": name,
        "role": "choosing" if name in CHOOSING else "checking",
        "norm": norm,
        "budget": passes,
        "n": len(x),
        "ours": rows[0]["median"],
        "best_peer": best["attack"] if best else None,
        "best_peer_median": best["median"] if best else None,
        "ratio": round(ratio, 4) if ratio else None,
        "runs": rows,
    }


def main() -> None:
    """Compare, and write ``benchmarks/results/minimal.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--advlib", type=Path, help="checkout of adversarial-library")
    parser.add_argument("--n", type=int, default=56, help="samples answered rightly, per model")
    parser.add_argument("--images", type=int, help="all that are answered rightly of the first ...")
    parser.add_argument("--passes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--models", nargs="+", default=[*CHOOSING, *CHECKING])
    parser.add_argument("--norms", nargs="+", default=list(NORMS))
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out, by name")
    parser.add_argument(
        "--near", type=float, help="only peers whose median in minimal.json is below so many best"
    )
    parser.add_argument("--again", action="store_true", help="ours only, beside the peers' runs")
    parser.add_argument("--name", default="minimal", help="of the results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    libraries = peers.foolbox()
    if args.advlib:
        extra = peers.advlib(args.advlib)
        libraries = {norm: {**libraries[norm], **extra[norm]} for norm in NORMS}
    for runs in libraries.values():
        for name in args.without:
            runs.pop(name, None)
    images, n = args.images or 2 * args.n, args.images or args.n
    settings = {"n": n, "advlib": bool(args.advlib)}
    if args.images:
        settings |= {"images": images, "near": args.near}
    rows = kept(args.name, n)
    for passes, model, norm in product(args.passes, args.models, args.norms):
        known = rows.get((passes, model, norm))
        left_out = known["left_out"] if known else args.without
        if args.near:
            left_out = far(passes, model, norm, args.near)
        wanted = {norm: {k: v for k, v in libraries[norm].items() if k not in left_out}}
        old = {r["attack"]: r for r in known["runs"]} if known else {}
        if args.again and known:
            known = {**known, "runs": known["runs"][1:]}
        elif all(is_there(old, name) for name in wanted[norm]):
            continue
        found = compare(model, norm, passes, images, n, wanted, known)
        rows[passes, model, norm] = {**found, "left_out": left_out}
        write(args.name, settings, list(rows.values()))  # whatever is done is kept


def is_there(runs: dict[str, dict], name: str) -> bool:
    """Whether a run that brought something is among those of a comparison."""
    return name in runs and "error" not in runs[name]


def far(passes: int, model: str, norm: str, near: float) -> list[str]:
    """Peers with more than ``near`` times the best median on a few samples; none that raised."""
    results = json.loads((RESULTS / "minimal.json").read_text(encoding="utf-8"))
    wanted = [passes, model, norm]
    row = next(r for r in results["rows"] if [r["budget"], r["model"], r["norm"]] == wanted)
    limit = near * row["best_peer_median"]
    runs = [r for r in row["runs"][1:] if "error" not in r]
    return [r["attack"] for r in runs if r["median"] is None or r["median"] > limit]


def kept(name: str, n: int) -> dict[tuple[int, str, str], dict]:
    """The comparisons of the results file with as many samples, by budget, model and norm."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("settings", {}).get("n") != n:
        return {}
    return {(row["budget"], row["model"], row["norm"]): row for row in found["rows"]}


if __name__ == "__main__":
    main()
