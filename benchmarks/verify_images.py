"""How many images keep their class in a norm ball: verified <= true <= what attacks leave.

    python benchmarks/verify_images.py mnist_convex --first 10000
    python benchmarks/verify_images.py cifar_cnn_a_mix --first 200 --minutes 30

CROWN bounds come first, for all images in one call; then an audit attacks what they leave open, and
branch and bound tries what that leaves, in rounds that give every open image four times as many
seconds, from ``--least`` to ``--limit``, those nearest to a proof first. ``--minutes`` limits the
CPU time of these rounds in one run; the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import holdfast
from _common import RESULTS, write
from _validation import CASES, network, samples
from holdfast.graphs.graph import Graph
from holdfast.graphs.torch_capture import capture
from holdfast.record import Verdict
from holdfast.verifiers.bounds import bounds, margins
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.verify import verify


@dataclass
class Progress:
    """What is known so far.

    Attributes:
        status: By image: ``wrong`` (misclassified as it is), ``unsat``, ``sat`` or ``open``.
        spent: CPU seconds tried on open images.
        lower: The bounds that these ended with.
        bounds_s: CPU seconds of the bounds.
        verified_by_bounds: Images that these prove.
        attack_s: CPU seconds of the audit.
        search_s: CPU seconds of all rounds so far.
    """

    status: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    lower: dict[str, float] = field(default_factory=dict)
    bounds_s: float = 0.0
    verified_by_bounds: int = 0
    attack_s: float = 0.0
    search_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=[n for n, c in CASES.items() if c.norm == "linf"])
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--limit", type=float, default=120.0, help="most CPU seconds an image")
    parser.add_argument("--least", type=float, default=2.0, help="the same in the first round")
    parser.add_argument("--again", action="store_true", help="forget what was found")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = samples(args.model, args.first)
    net = network(args.model)
    graph = capture(net, x[:2], fold=False)
    eps, progress = CASES[args.model].eps, Progress() if args.again else _read(args.model, len(x))
    if not progress.status:
        _bound(net, graph, x, y, eps, progress)
        _attack(net, x, y, CASES[args.model].threat, progress)
        _save(args, progress)
    end, limit = time.process_time() + 60 * args.minutes, args.least
    while limit <= args.limit and "open" in progress.status:
        for i in _nearest_first(progress):
            if progress.spent.get(str(i), 0.0) < limit:
                if time.process_time() > end:
                    return
                _decide(graph, x[i], int(y[i]), eps, limit, i, progress)
                _save(args, progress)
        limit = min(4 * limit, args.limit) if limit < args.limit else 2 * limit


def _nearest_first(progress: Progress) -> list[int]:
    """Open images, those first whose bounds were nearest to a proof."""
    rows = [i for i, status in enumerate(progress.status) if status == "open"]
    return sorted(rows, key=lambda i: -progress.lower.get(str(i), -math.inf))


def _read(name: str, n: int) -> Progress:
    path = RESULTS / f"verify_images_{name}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if len(found["progress"]["status"]) == n:
            return Progress(**found["progress"])
    return Progress()


def _bound(
    net: nn.Module, graph: Graph, x: Tensor, y: Tensor, eps: float, progress: Progress
) -> None:
    """All images in one call."""
    begin = time.process_time()
    with torch.no_grad():
        right = net(x).argmax(1) == y
        C = margins(y, graph.nodes[-1].size)  # noqa: N806 - the literature's name
        proven = (bounds(graph, x, eps, "linf", C=C).lower > 0).all(1)
    progress.status = [
        "wrong" if not r else "unsat" if p else "open"
        for r, p in zip(right.tolist(), proven.tolist(), strict=True)
    ]
    progress.bounds_s = round(time.process_time() - begin, 1)
    progress.verified_by_bounds = progress.status.count("unsat")


def _attack(net: nn.Module, x: Tensor, y: Tensor, threat: str, progress: Progress) -> None:
    """The standard cascade on what is open."""
    rows = [i for i, status in enumerate(progress.status) if status == "open"]
    begin = time.process_time()
    report = holdfast.audit(net, (x[rows], y[rows]), threat, verify="off") if rows else None
    for i, verdict in zip(rows, report.verdicts if report else (), strict=True):
        if verdict is Verdict.BROKEN:
            progress.status[i] = "sat"
    progress.attack_s = round(time.process_time() - begin, 1)


def _decide(
    graph: Graph, x: Tensor, y: int, eps: float, limit: float, i: int, progress: Progress
) -> None:
    """One image by attack and branch and bound."""
    flat = x.double().flatten().numpy()
    lower, upper = np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)
    rows = margins(torch.tensor([y]), graph.nodes[-1].size)[0].double().numpy()
    prop = Property(tuple(Clause(lower, upper, r[None], np.zeros(1)) for r in rows))
    begin = time.process_time()
    verdict = verify(graph, prop, timeout_s=limit, clock=time.process_time)
    spent = time.process_time() - begin
    progress.search_s = round(progress.search_s + spent, 1)
    if verdict.status in ("sat", "unsat"):
        progress.status[i] = verdict.status
    else:
        progress.spent[str(i)] = limit
        progress.lower[str(i)] = round(verdict.lower, 4)
    print(i, verdict.status, round(spent, 2), round(verdict.lower, 4), flush=True)


def _save(args: argparse.Namespace, progress: Progress) -> None:
    write(f"verify_images_{args.model}", {"threads": 1}, [_row(args, progress)], **_rest(progress))


def _rest(progress: Progress) -> dict[str, Any]:
    return {"progress": asdict(progress)}


def _row(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    n, count = len(progress.status), progress.status.count
    return {
        "model": args.model,
        "threat": CASES[args.model].threat,
        "images": n,
        "verified_by_bounds": progress.verified_by_bounds / n,
        "bounds_cpu_s": progress.bounds_s,
        "attack_cpu_s": progress.attack_s,
        "verified": count("unsat") / n,
        "not_broken": (count("unsat") + count("open")) / n,
        "open": count("open"),
        "misclassified": count("wrong"),
        "search_cpu_s": progress.search_s,
    }


if __name__ == "__main__":
    main()
