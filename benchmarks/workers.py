"""What several processes bring: one audit by 1, 2, 4 workers, one thread each, the same bytes?

Seconds on the clock say something on an idle machine only. Processor seconds do on a busy one too:
what the processes use together, against one process, bounds the throughput that the machine's cores
allow. A worker's start (importing torch, loading the model) is measured by workers without a job to
speak of and given apart; it is paid once per run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from _common import images, write
from _models import trained
from holdfast import Model
from holdfast.data import ArrayData
from holdfast.engine import journal
from holdfast.engine.run import run
from holdfast.plan import Plan
from holdfast.record import Attempt, Clean

THREAT = "linf:0.3"


def audited(plan: Plan, net: Any, data: ArrayData) -> tuple[dict[str, Any], dict[str, float]]:
    """What a run found, by sample, with the bytes of its adversarial inputs; and its cost."""
    directory = Path(tempfile.mkdtemp())
    began, before = time.perf_counter(), os.times()
    for _ in run(plan, Model(net), data, directory):
        pass
    after = os.times()
    cost = {
        "seconds": time.perf_counter() - began,
        "cpu_own": after.user + after.system - before.user - before.system,
        "cpu_workers": (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        ),
    }
    found: dict[str, Any] = {}
    for record in journal.read(directory):
        if isinstance(record, Clean):
            found[f"clean {record.sample}"] = (record.prediction, record.margin)
        if isinstance(record, Attempt):
            key = f"{record.sample} {record.stage} {record.target} {record.restart}"
            found[key] = (record.outcome, record.forward, record.backward, record.margin)
    path = journal.adversarial_path(directory, THREAT)
    found["x_adv"] = load_file(path)["x_adv"].tobytes() if path.exists() else b""
    shutil.rmtree(directory)
    return found, cost


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per number of workers."""
    net = trained(options.model)
    x, y = images("mnist", options.n)
    stages = ({"attack": "apgd", "steps": options.steps, "restarts": options.restarts},)
    shared: dict[str, Any] = {"threats": (THREAT,), "threads": 1, "curve_steps": 0, "trust": "off"}
    shared["verify"] = "off"
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for workers in options.workers:
        plan = Plan(workers=workers, stages=stages, **shared)
        found, cost = audited(plan, net, ArrayData(x, y))
        start = 0.0
        if workers > 1:
            short = Plan(workers=workers, stages=({"attack": "fgsm"},), **shared)
            start = audited(short, net, ArrayData(x[:8], y[:8]))[1]["cpu_workers"]
        first = first or found
        work = cost["cpu_own"] + cost["cpu_workers"] - start
        rows.append(
            {
                "workers": workers,
                "same": found == first,
                "seconds": round(cost["seconds"], 2),
                "cpu_seconds": round(work, 2),
                "cpu_seconds_of_the_run_itself": round(cost["cpu_own"], 2),
                "cpu_seconds_to_start_a_worker": round(start / workers, 2),
            }
        )
        base = rows[0]
        rows[-1]["throughput"] = round(base["seconds"] / rows[-1]["seconds"], 2)
        cores = min(workers, os.cpu_count() or 1)
        rows[-1]["throughput_by_cpu"] = round(cores * base["cpu_seconds"] / work, 2)
        print(rows[-1])
    return rows


def main() -> None:
    """Measure and write ``results/workers.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist_fgsm")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    write("workers", vars(options) | {"threat": THREAT, "cores": os.cpu_count()}, measure(options))


if __name__ == "__main__":
    main()
