"""Does the share of the margin that is left after a few gradient steps tell who falls later?

One short run of ``malt``; then ``standard``. Of those that the short run left: how many does
standard break, in how many pairs did the one that falls have less left than the one that does not,
and how many of either kind had less left than ``standard`` and ``quick`` go on with (half), and a
tenth more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import holdfast
from _common import write
from _validation import CASES, network, samples
from holdfast.engine import journal

LIMITS = (0.5, 0.6)


def audited(name: str, n: int, cascade: Any) -> tuple[np.ndarray, np.ndarray]:
    """What no attack broke ``(n,)``, and the share of the clean margin left ``(n,)``."""
    net, (x, y) = network(name), samples(name, n)
    options: dict[str, Any] = {"curve_steps": 0, "trust": "off", "verify": "off"}
    with tempfile.TemporaryDirectory() as folder:
        report = holdfast.audit(
            net, (x, y), CASES[name].threat, cascade=cascade, out=folder, **options
        )
        records = journal.read(Path(folder))
    clean, best = np.full(len(y), -np.inf), np.full(len(y), -np.inf)
    for record in records:
        if record.kind == "clean":
            clean[record.sample] = record.margin
        if record.kind == "attempt":
            best[record.sample] = max(best[record.sample], record.margin)
    left = np.clip(best / np.minimum(clean, -1e-9), 0, 1)
    return np.array([verdict.value == "unknown" for verdict in report.verdicts]), left


def measure(name: str, n: int, lengths: list[int]) -> list[dict[str, Any]]:
    """One row per length of the short run."""
    robust, _ = audited(name, n, "standard")
    rows = []
    for steps in lengths:
        alive, left = audited(name, n, [{"attack": "malt", "steps": steps, "runs": 1}])
        falls, stays = left[alive & ~robust], left[alive & robust]
        pairs = (falls[:, None] < stays) + 0.5 * (falls[:, None] == stays)
        row = {"model": name, "steps": steps, "fall_later": len(falls), "stay": len(stays)}
        row["pairs_told_apart"] = round(float(pairs.mean()), 4) if pairs.size else None
        for limit in LIMITS:
            row[f"fall_later_below_{limit}"] = int((falls < limit).sum())
            row[f"stay_below_{limit}"] = int((stays < limit).sum())
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure and write ``results/effort.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mnist_fgsm"], choices=list(CASES))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", nargs="+", type=int, default=[3, 20])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.models for row in measure(name, options.n, options.steps)]
    write("effort", vars(options), rows)


if __name__ == "__main__":
    main()
