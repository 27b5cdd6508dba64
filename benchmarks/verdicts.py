"""What whole audits must show: published robustness reached, and verdicts that nothing can shake.

Each row names what was asked and what was measured, and whether the one holds for the other.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import holdfast
from _common import counted, images, seconds, write
from _models import trained

EPS = 0.3
N_KILLS = 10


def row(what: str, asked: str, value: str, holds: bool) -> dict[str, Any]:
    """One line of the result."""
    found = {"what": what, "asked": asked, "value": value, "holds": holds}
    print(found, flush=True)
    return found


def audit(model: str, data: tuple[Tensor, Tensor], **options: Any) -> holdfast.Report:
    """An audit of one of the trained networks at linf 0.3."""
    return holdfast.audit(trained(model), data, options.pop("threat", f"linf:{EPS}"), **options)


def published(n: int) -> dict[str, Any]:
    """FGSM-trained network: AutoAttack's authors' code leaves 0.801 of the first 1,000 images."""
    net, out = trained("mnist_fgsm"), []
    with counted(net) as count:
        spent = seconds(lambda: out.append(holdfast.audit(net, images("mnist", n), f"linf:{EPS}")))
    accuracy = out[0].robust_accuracy
    return row(
        f"robust accuracy, MNIST network trained with FGSM, linf 0.3, first {n} test images",
        "at most 0.82",
        f"{accuracy} in {count.passes / n:.0f} passes per sample and {spent / 60:.1f} min",
        accuracy.value <= 0.82,
    )


def undefended(n: int) -> dict[str, Any]:
    """The negative control: nothing survives, and quickly."""
    net, out = trained("mnist_clean"), []
    with counted(net) as count:
        out.append(holdfast.audit(net, images("mnist", n), f"linf:{EPS}", curve_steps=0))
    value, passes = out[0].robust_accuracy.value, count.passes / n
    return row(
        f"robust accuracy, undefended MNIST network, linf 0.3, first {n} test images",
        "0.0 within 12 passes per sample",
        f"{value:.3f} in {passes:.1f} passes per sample",
        value == 0 and passes <= 12,
    )


def no_change(n: int) -> dict[str, Any]:
    """With eps = 0 an attacker can do nothing."""
    report = audit("mnist_fgsm", images("mnist", n), threat="linf:0", cascade="quick")
    robust, clean = report.robust_accuracy.value, report.clean_accuracy.value
    return row(
        "robust accuracy at eps = 0", "the clean accuracy", f"{robust} and {clean}", robust == clean
    )


def same_verdicts(n: int) -> dict[str, Any]:
    """Neither batch size nor order may change a sample's verdict."""
    x, y = images("mnist", n)
    reference = audit("mnist_fgsm", (x, y), cascade="quick").verdicts
    n_different = 0
    for batch_size in (1, 7, 64, 1000):
        other = audit("mnist_fgsm", (x, y), cascade="quick", batch_size=batch_size).verdicts
        n_different += sum(a != b for a, b in zip(reference, other, strict=True))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(n)
        other = audit("mnist_fgsm", (x[order], y[order]), cascade="quick").verdicts
        n_different += sum(reference[i] != v for i, v in zip(order, other, strict=True))
    return row(
        f"verdicts of {n} samples that differ at batch sizes 1, 7, 64, 1000 and in 3 orders",
        "0",
        str(n_different),
        n_different == 0,
    )


def _child(mode: str, n: int, folder: Path) -> list[str]:
    return [sys.executable, __file__, "--child", mode, "--child-n", str(n), "--out", str(folder)]


def killed(n: int) -> dict[str, Any]:
    """A run killed ten times at random moments ends like one that was left alone."""
    rng = random.Random(0)
    n_kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        while n_kills < N_KILLS:
            process = subprocess.Popen(_child("kill", n, folder))
            _wait_for_work(process, folder / "journal.jsonl")
            time.sleep(rng.uniform(0, 1.5))
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            n_kills += 1
        subprocess.run(_child("kill", n, folder), check=True)
        found = holdfast.Report.load(folder).verdicts
    reference = audit("mnist_fgsm", images("mnist", n)).verdicts
    n_different = sum(a != b for a, b in zip(reference, found, strict=True))
    return row(
        f"verdicts of {n} samples that differ after {n_kills} times kill -9",
        f"0 after {N_KILLS}",
        str(n_different),
        n_different == 0 and n_kills == N_KILLS,
    )


def _wait_for_work(process: subprocess.Popen[bytes], journal: Path) -> None:
    """Until this sitting has written something."""
    before = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
        time.sleep(0.02)


def memory(n: int) -> dict[str, Any]:
    """Memory grows with the batch, not with the data."""
    with tempfile.TemporaryDirectory() as name:
        command = _child("memory", n, Path(name) / "run")
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = float(result.stdout.split()[-1])
    what = f"resident memory of an audit of {n} MNIST images, Python and torch included"
    return row(what, "less than 1.5 GB", f"{peak:.2f} GB", peak < 1.5)


def child(mode: str, n: int, folder: Path) -> None:
    """The audits that run in a process of their own."""
    import resource

    if mode == "kill":
        audit("mnist_fgsm", images("mnist", n), out=folder)
        return
    from _common import data_folder

    path = data_folder() / "mnist" / "t10k-images-idx3-ubyte.gz"
    holdfast.audit(trained("mnist_clean"), path, f"linf:{EPS}", out=folder, n=n)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    """Measure and write ``results/verdicts.json``; exit 1 where something asked does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="images of the first two rows")
    parser.add_argument("--n-same", type=int, default=200, help="images of the rows on sameness")
    parser.add_argument("--n-killed", type=int, default=60)
    parser.add_argument("--n-memory", type=int, default=10_000)
    parser.add_argument("--child", choices=["kill", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--child-n", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.child_n, options.out)
        return
    sizes = {key: value for key, value in vars(options).items() if key.startswith("n")}
    settings = sizes | {"eps": EPS, "threads": torch.get_num_threads()}
    rows: list[dict[str, Any]] = []
    for measure, n in (
        (undefended, options.n),
        (no_change, options.n),
        (same_verdicts, options.n_same),
        (memory, options.n_memory),
        (killed, options.n_killed),
        (published, options.n),
    ):
        rows.append(measure(n))
        write("verdicts", settings, rows)  # what was found is kept if a later row fails
    if not all(found["holds"] for found in rows):
        sys.exit("Something that was asked does not hold; see above.")


if __name__ == "__main__":
    main()
