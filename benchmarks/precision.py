"""What a search in bf16 saves: a whole audit in float32 and in bf16, processor seconds of each.

Small networks on a processor gain little or nothing; what counts is that verdicts are judged in
float32 either way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch

import holdfast
from _common import write
from _validation import CASES, network, samples

PRECISIONS = ("float32", "bf16")


def audited(name: str, n: int, precision: str) -> tuple[list[str], dict[str, Any]]:
    """Every verdict, and what the audit cost."""
    net, (x, y) = network(name), samples(name, n)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        report = holdfast.audit(
            net,
            (x, y),
            CASES[name].threat,
            precision=precision,
            verify="off",
            trust="off",
            threads=1,
            out=folder,
        )
    spent = time.process_time() - began
    result = report.threats[CASES[name].threat]
    passes = (sum(result.forward) + sum(result.backward)) / len(y)
    row = {
        "model": name,
        "precision": precision,
        "robust_accuracy": report.robust_accuracy.value,
        "search_passes_per_sample": round(passes, 1),
        "cpu_seconds": round(spent, 2),
    }
    return [verdict.value for verdict in report.verdicts], row


def measure(names: list[str], n: int, rounds: int) -> list[dict[str, Any]]:
    """Both precisions in turns; of several rounds the quickest."""
    rows: list[dict[str, Any]] = []
    for name in names:
        best: dict[str, dict[str, Any]] = {}
        verdicts: dict[str, list[str]] = {}
        for _ in range(rounds):
            for precision in PRECISIONS:
                verdicts[precision], row = audited(name, n, precision)
                old = best.get(precision, row)
                best[precision] = min(old, row, key=lambda r: r["cpu_seconds"])
        pairs = zip(*(verdicts[p] for p in PRECISIONS), strict=True)
        n_different = sum(a != b for a, b in pairs)
        base = best[PRECISIONS[0]]["cpu_seconds"]
        for row in best.values():
            rows.append(row | {"verdicts_differ": n_different})
            rows[-1]["ratio"] = round(row["cpu_seconds"] / base, 2)
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write ``results/precision.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["cifar_cnn_a_mix"], choices=list(CASES))
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    write("precision", vars(options), measure(options.models, options.n, options.rounds))


if __name__ == "__main__":
    main()
