"""Seconds of ``standard`` and of AutoAttack's own code, in turn on the same images of one machine.

Passes are what no machine changes (``strength.py``); this asks what is left of them on the clock,
with everything that an audit does beside its passes. Ours runs before and after theirs, the faster
of the two counts, and the machine should have nothing else to do: ``load`` says whether it did.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import _tools
from _common import RESULTS, commit, seconds, write
from _validation import CASES, network, samples

IMAGES = {
    "mnist_clean": 1000,
    "fashion_transformer": 1000,
    "mnist_fgsm": 1000,
    "cifar_base": 300,
    "cifar_residual_pgd": 300,
    "fashion_transformer_trades": 300,
}
BATCH = 250  # AutoAttack's own default


def compared(name: str, n: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One network: ours, theirs, ours again."""
    import holdfast

    net, case = network(name), CASES[name]
    x, y = samples(name, n)
    reference = _tools.reference(folder, batch=BATCH)
    accuracies = []

    def ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            report = holdfast.audit(
                net, (x, y), case.threat, curve_steps=0, verify="off", out=out, **options
            )
        accuracies.append(report.threats[case.threat].robust_accuracy.value)

    with tempfile.TemporaryDirectory() as out:  # imports and first calls
        holdfast.audit(net, (x[:8], y[:8]), case.threat, verify="off", out=out, **options)
    found = []
    first = seconds(ours)
    theirs = seconds(lambda: found.append(reference(net, x.clone(), y.clone(), case)[0]))
    mine = min(first, seconds(ours))
    with torch.no_grad():
        left = torch.cat([net(part).argmax(1) for part in found[0].split(BATCH)]) == y
    return {
        "model": name,
        "threat": case.threat,
        "n": len(y),
        "seconds": round(mine, 2),
        "reference_seconds": round(theirs, 2),
        "times_faster": round(theirs / mine, 1),
        "robust_accuracy": round(accuracies[0], 4),
        "reference_robust_accuracy": round(float(left.float().mean()), 4),
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
    }


def main() -> None:
    """Measure the networks that are asked for; rows of the others stay in ``wall_time.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--autoattack", type=Path, required=True, help="a checkout of auto-attack")
    parser.add_argument("--models", nargs="*", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--cascade", default="standard")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = {"cascade": options.cascade, "threads": options.threads}
    for name in options.models:
        row = compared(name, IMAGES[name], options.autoattack, ours)
        print(row, flush=True)
        rows = {name: row for name, row in _known().items() if name in IMAGES} | {name: row}
        write(
            "wall_time", {"reference_batch": BATCH, **ours}, [rows[n] for n in IMAGES if n in rows]
        )


def _known() -> dict[str, dict[str, Any]]:
    """The rows that are there, by network."""
    path = RESULTS / "wall_time.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {row["model"]: row for row in rows}


if __name__ == "__main__":
    main()
