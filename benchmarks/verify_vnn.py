"""Verdicts on the competition's benchmarks against the official ones: solved, wrong, CPU seconds.

    python benchmarks/verify_vnn.py acasxu rl_benchmarks --timeout 116
    python benchmarks/verify_vnn.py mnist_fc --every 5 --no-attack

A verdict is wrong when it says ``unsat`` where a counterexample was replayed, or ``sat`` where
tools agree on ``unsat``; a ``sat`` of ours counts only with its own replay through onnxruntime
inside the text of the property, without tolerance.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from _common import data_folder, write
from holdfast.certificates.exact import holds
from holdfast.properties import parse_counterexample, read_vnnlib
from holdfast.properties.instances import Outcome, read_instances, run_instances

BENCHMARKS = ("acasxu", "rl_benchmarks", "verivital", "mnist_fc", "oval21")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS)
    parser.add_argument(
        "--timeout", type=float, help="seconds an instance, at most the official limit"
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th instance only")
    parser.add_argument("--first", type=int, help="take the first n of these")
    parser.add_argument("--no-attack", action="store_true", help="decide by bounds alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="verify_vnn", help="name of the result file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [run(name, args) for name in args.benchmarks]
    write(args.name, {k: v for k, v in vars(args).items() if k != "name"}, rows)


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One benchmark: its row of the table."""
    folder = data_folder() / "vnn" / name
    source = next(folder.glob("*instances.csv"))
    chosen = read_instances(source)[:: args.every][: args.first]
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "instances.csv"
        table.write_text(
            "".join(f"{folder / i.onnx},{folder / i.vnnlib},{i.timeout_s}\n" for i in chosen)
        )
        outcomes = []
        for outcome in run_instances(
            table,
            Path(scratch) / "results.csv",
            timeout_s=args.timeout,
            counterexamples=Path(scratch) / "found",
            attack=not args.no_attack,
        ):
            outcomes.append(outcome)
            print(
                f"{name} {outcome.number + 1}/{outcome.n_instances} {outcome.result} "
                f"{outcome.seconds:.2f} s  {Path(chosen[outcome.number].onnx).name} "
                f"{Path(chosen[outcome.number].vnnlib).name} {outcome.reason}",
                flush=True,
            )
        unreplayed = [
            o.number for o in outcomes if o.result == "sat" and not replayed(o, Path(scratch))
        ]
    truth = official(folder)
    names = [(i.onnx, i.vnnlib) for i in chosen]
    wrong = [names[o.number] for o in outcomes if is_wrong(o.result, truth[names[o.number]])]
    solved = [o for o in outcomes if o.result in {"sat", "unsat"}]
    row = {
        "benchmark": name,
        "instances": len(outcomes),
        "solved": len(solved),
        "sat": sum(o.result == "sat" for o in outcomes),
        "unsat": sum(o.result == "unsat" for o in outcomes),
        "timeout": sum(o.result == "timeout" for o in outcomes),
        "errors": [f"{names[o.number]}: {o.reason}" for o in outcomes if o.result == "error"],
        "wrong": wrong,
        "sat_not_replayed": [names[i] for i in unreplayed],
        "median_s": round(statistics.median(o.seconds for o in outcomes), 4),
        "median_cpu_s": round(statistics.median(o.cpu_seconds for o in outcomes), 4),
        "cpu_s": round(sum(o.cpu_seconds for o in outcomes), 2),
        "unsolved": [names[o.number] for o in outcomes if o not in solved],
        "slowest": [
            (*names[o.number], round(o.cpu_seconds, 2))
            for o in sorted(outcomes, key=lambda o: -o.cpu_seconds)[:5]
        ],
    }
    print({k: v for k, v in row.items() if k not in {"unsolved", "slowest"}}, flush=True)
    return row


def official(folder: Path) -> dict[tuple[str, str], str]:
    """The verdict of ``ground_truth.csv`` by network and property."""
    with (folder / "ground_truth.csv").open() as file:
        return {(r["onnx"], r["vnnlib"]): r["verdict"] for r in csv.DictReader(file)}


def is_wrong(result: str, truth: str) -> bool:
    """Whether a verdict contradicts the official one; ``open`` contradicts nothing."""
    return (result == "unsat" and truth == "sat") or (
        result == "sat" and truth in {"unsat", "unsat1"}
    )


def replayed(outcome: Outcome, scratch: Path) -> bool:
    """Run the written counterexample through onnxruntime and judge it by the exact text."""
    query = read_vnnlib(outcome.instance.vnnlib)
    x, _ = parse_counterexample(query, (scratch / "found" / f"{outcome.number}.txt").read_text())
    session = onnxruntime.InferenceSession(
        outcome.instance.onnx, providers=["CPUExecutionProvider"]
    )
    (source,) = session.get_inputs()[:1]
    shape = [d if isinstance(d, int) and d > 0 else 1 for d in source.shape]
    single = x.astype(np.float32)
    (y,) = session.run(None, {source.name: single.reshape(shape)})
    return bool((single == x).all()) and holds(query.text, x, np.asarray(y).ravel())


if __name__ == "__main__":
    main()
