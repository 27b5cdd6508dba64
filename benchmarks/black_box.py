"""Attacks from scores alone beside their authors' code, at equal queries, sample by sample.

Square in l1 beside AutoAttack's, Sparse-RS in l0 beside its repository's (which counts pixels: it
is given flattened inputs, so that it counts coordinates, as the threat does), and the whole preset
``autoattack`` in l1, which has Square at its end. Success is judged here. Work is kept in
pieces under ``build/black_box``, so a run may be stopped and gone on with:

    python benchmarks/black_box.py --autoattack DIR --sparse-rs DIR
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import holdfast
from _common import ROOT, counted, write
from _validation import network, samples
from holdfast.registry import attack
from holdfast.threat import Domain, parse_threat

PIECES = ROOT / "build" / "black_box"
Search = Callable[[nn.Module, Tensor, Tensor, float, int, int], Tensor]
"""``(net, x, y, eps, queries, seed) -> x_adv``."""

CASES = {
    "square": (
        ("mnist_clean", "l1:10"),
        ("mnist_pgd", "l1:10"),
        ("cifar_cnn_a_mix", "l1:12"),
    ),
    "sparse_rs": (
        ("mnist_clean", "l0:10"),
        ("mnist_pgd", "l0:6"),
        ("cifar_cnn_a_mix", "l0:15"),
        ("mnist_fgsm", "l0:8"),
    ),
    "autoattack": (("cifar_cnn_a_mix", "l1:4"),),
}
N = {"square": 100, "sparse_rs": 100, "autoattack": 50}
"""Samples per network, unless ``--n`` says otherwise."""


def ours(name: str, norm: str) -> Search:
    """Our attack of this name, all its options at their defaults."""

    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
        return attack(name, queries=queries)(net, x, y, f"{norm}:{eps}", seed=seed)

    return run


def preset(net: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
    """Our ``autoattack``; ``queries`` has no say in it."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"curve_steps": 0, "verify": "off", "seed": seed, "out": folder}
        report = holdfast.audit(net, (x, y), f"l1:{eps}", cascade="autoattack", **options)
        rows, points = report.adversarial()
    x_adv = x.clone()
    x_adv[rows] = points.to(x)
    return x_adv


def autoattack(folder: Path) -> Search:
    """The authors' own AutoAttack in l1 (``folder``: fra31/auto-attack)."""

    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
        module = _imported(folder, "autoattack")
        options = {"version": "standard", "verbose": False, "device": str(x.device)}
        whole = module.AutoAttack(net, norm="L1", eps=eps, seed=seed, **options)
        return whole.run_standard_evaluation(x, y, bs=len(x))

    return run


def square(folder: Path) -> Search:
    """The authors' Square in l1 as AutoAttack runs it (``folder``: fra31/auto-attack)."""

    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
        module = _imported(folder, "autoattack.square")
        options = {"p_init": 0.8, "n_restarts": 1, "loss": "margin", "resc_schedule": False}
        search = module.SquareAttack(
            net, norm="L1", eps=eps, n_queries=queries, seed=seed, verbose=False, **options
        )
        return search.perturb(x.clone(), y)

    return run


def sparse_rs(folder: Path) -> Search:
    """The authors' Sparse-RS (``folder``: fra31/sparse-rs), one row of m pixels per input."""

    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
        module = _imported(folder, "rs_attacks")
        search = module.RSAttack(
            lambda z: net(z.reshape(-1, *x.shape[1:])),
            norm="L0",
            eps=int(eps),
            n_queries=queries,
            p_init=0.3,
            seed=seed,
            verbose=False,
        )
        _, x_adv = search.perturb(x.reshape(len(x), 1, 1, -1).clone(), y)
        return x_adv.reshape(x.shape)

    return run


def _imported(folder: Path, module: str) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(module)


def broken(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: str) -> Tensor:
    """Which samples are answered wrongly at an allowed input; clean mistakes count."""
    allowed = parse_threat(threat).bind(x, Domain())
    slack = 1e-5 * allowed.radius if not threat.startswith("l0") else 0.0
    inside = allowed.resized(allowed.radius + slack).contains(x_adv)
    with torch.no_grad():
        return ((net(x_adv).argmax(1) != y) & inside) | (net(x).argmax(1) != y)


def measure(
    name: str, tool: str, search: Search, case: tuple[str, str], n: int, queries: int, seed: int
) -> dict[str, Any]:
    """One tool on one network, from its piece where that is there already."""
    model, threat = case
    parts = (name, tool, model, threat.replace(":", ""), str(n), str(queries), str(seed))
    path = PIECES / f"{'-'.join(parts)}.json"
    if path.is_file():
        return json.loads(path.read_text())
    net, (x, y) = network(model), samples(model, n)
    eps = float(threat.partition(":")[2])
    start = os.times().user
    with counted(net) as count, contextlib.redirect_stdout(sys.stderr):
        x_adv = search(net, x, y, eps, queries, seed)
    spent = os.times().user - start
    fell = broken(net, x_adv.detach(), x, y, threat)
    found = {
        "attack": name,
        "tool": tool,
        "model": model,
        "threat": threat,
        "n": len(y),
        "queries": queries,
        "seed": seed,
        "robust_accuracy": round(1 - float(fell.double().mean()), 4),
        "forward_per_sample": round(count.forward / len(y), 1),
        "cpu_seconds": round(spent, 1),
        "fooled": "".join(str(int(b)) for b in fell),
    }
    PIECES.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    print({key: value for key, value in found.items() if key != "fooled"}, flush=True)
    return found


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per seed, which samples ours broke and the authors' code did not, and the other way round."""
    by_tool = {(r["attack"], r["model"], r["threat"], r["seed"], r["tool"]): r for r in rows}
    for key, row in by_tool.items():
        other = by_tool.get((*key[:-1], "authors"))
        if other is None or row is other:
            continue
        pairs = list(zip(row["fooled"], other["fooled"], strict=True))
        row["only_this_broke"] = [i for i, pair in enumerate(pairs) if pair == ("1", "0")]
        row["only_authors_broke"] = [i for i, pair in enumerate(pairs) if pair == ("0", "1")]
    return [{key: value for key, value in row.items() if key != "fooled"} for row in rows]


def main() -> None:
    """Measure what is not there yet, and write ``black_box.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--attacks", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", nargs="*", help="default: all")
    parser.add_argument("--n", type=int, help="samples per network")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--autoattack", type=Path, help="a checkout of fra31/auto-attack")
    parser.add_argument("--sparse-rs", type=Path, help="a checkout of fra31/sparse-rs")
    options = parser.parse_args()
    authors = {
        "square": (options.autoattack, square),
        "sparse_rs": (options.sparse_rs, sparse_rs),
        "autoattack": (options.autoattack, autoattack),
    }
    rows = []
    for name in options.attacks:
        folder, make = authors[name]
        for case in CASES[name]:
            own = preset if name == "autoattack" else ours(name, case[1].partition(":")[0])
            tools = {"ours": own}
            tools |= {"authors": make(folder)} if folder else {}
            if options.models and case[0] not in options.models:
                continue
            for seed in options.seeds:
                for tool, search in tools.items():
                    given = (options.n or N[name], options.queries, seed)
                    rows.append(measure(name, tool, search, case, *given))
    rows = compared(rows)
    for row in rows:
        print(row)
    write("black_box", {"queries": options.queries}, rows)


if __name__ == "__main__":
    main()
