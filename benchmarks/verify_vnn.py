"""Verdicts on the competition's benchmarks against the official ones: solved, wrong, CPU seconds.

    python benchmarks/verify_vnn.py acasxu rl_benchmarks --timeout 116
    python benchmarks/verify_vnn.py mnist_fc --every 5 --no-attack --name without_attack

Every verdict is written as it is found, with its commit; the same command goes on where it ended,
and tries what stayed open again where it is given more time. ``--again`` forgets what was found.

A verdict is wrong when it says ``unsat`` where a counterexample was replayed, or ``sat`` where
tools agree on ``unsat``; a ``sat`` of ours counts only with its own replay through onnxruntime
inside the text of the property, without tolerance.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from _common import RESULTS, commit, data_folder, write
from holdfast.certificates.exact import holds
from holdfast.properties import parse_counterexample, read_vnnlib
from holdfast.properties.instances import Instance, Outcome, read_instances, run_instances

BENCHMARKS = ("acasxu", "rl_benchmarks", "verivital", "mnist_fc", "oval21")
DECIDED = ("sat", "unsat")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS)
    parser.add_argument(
        "--timeout", type=float, help="seconds an instance, at most the official limit"
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th instance only")
    parser.add_argument("--only", default="", help="take those whose names contain this")
    parser.add_argument("--first", type=int, help="take the first n of these")
    parser.add_argument("--no-attack", action="store_true", help="decide by bounds alone")
    parser.add_argument("--again", action="store_true", help="forget earlier verdicts of these")
    parser.add_argument("--cpu", action="store_true", help="limits count the processor's seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="verify_vnn", help="name of the result file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = _read(args.name)
    for name in args.benchmarks:
        run(name, args, found)
    for row in summaries(found):
        print({k: v for k, v in row.items() if k != "unsolved"}, flush=True)


def _read(name: str) -> dict[tuple[str, ...], Row]:
    """Verdicts of earlier runs by benchmark, network and property."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["instances"] if path.exists() else []
    return {(row["benchmark"], row["onnx"], row["vnnlib"]): row for row in rows}


def run(name: str, args: argparse.Namespace, found: dict[tuple[str, ...], Row]) -> None:
    """Decide what is open of one benchmark."""
    folder = data_folder() / "vnn" / name
    truth = official(folder)
    chosen = read_instances(next(folder.glob("*instances.csv")))[:: args.every]
    chosen = [i for i in chosen if args.only in f"{i.onnx} {i.vnnlib}"][: args.first]
    for instance in chosen:
        key = (name, instance.onnx, instance.vnnlib)
        limit = min(instance.timeout_s, args.timeout or instance.timeout_s)
        known = None if args.again else found.get(key)
        clock = "processor" if args.cpu else "wall"
        tried = known is not None and known.get("clock", "wall") == clock
        if known and (known["result"] in DECIDED or (tried and known["limit_s"] >= limit)):
            continue
        options: dict[str, Any] = {"attack": not args.no_attack}
        if args.cpu:
            options["clock"] = time.process_time
        row = decide(folder, instance, limit, options)
        verdict = truth[instance.onnx, instance.vnnlib]
        found[key] = {
            "benchmark": name,
            **row,
            "official": verdict,
            "clock": clock,
            "is_wrong": is_wrong(row["result"], verdict),
            "commit": commit(),
        }
        print(name, *(found[key][k] for k in ("onnx", "vnnlib", "result", "cpu_s")), flush=True)
        save(args, found)


def decide(folder: Path, instance: Instance, limit: float, options: dict[str, Any]) -> Row:
    """One instance, through the runner that users have."""
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "instances.csv"
        names = folder / instance.onnx, folder / instance.vnnlib
        table.write_text(f"{names[0]},{names[1]},{limit}\n", encoding="utf-8")
        (outcome,) = run_instances(
            table,
            Path(scratch) / "results.csv",
            counterexamples=Path(scratch) / "found",
            **options,
        )
        is_replayed = replayed(outcome, Path(scratch)) if outcome.result == "sat" else None
    return {
        "onnx": instance.onnx,
        "vnnlib": instance.vnnlib,
        "limit_s": limit,
        "result": outcome.result,
        "seconds": round(outcome.seconds, 3),
        "cpu_s": round(outcome.cpu_seconds, 3),
        "domains": outcome.domains,
        "reason": outcome.reason,
        "is_replayed": is_replayed,
    }


def save(args: argparse.Namespace, found: dict[tuple[str, ...], Row]) -> None:
    """Everything found so far, with the table of all benchmarks."""
    write(args.name, {"threads": args.threads}, summaries(found), instances=list(found.values()))


def summaries(found: dict[tuple[str, ...], Row]) -> list[Row]:
    """One row for every benchmark."""
    names = [n for n in BENCHMARKS if any(key[0] == n for key in found)]
    return [_summary(n, [row for key, row in found.items() if key[0] == n]) for n in names]


def _summary(name: str, rows: Sequence[Row]) -> Row:
    count = {r: sum(row["result"] == r for row in rows) for r in ("sat", "unsat", "timeout")}
    return {
        "benchmark": name,
        "instances": len(rows),
        "solved": count["sat"] + count["unsat"],
        **count,
        "n_wrong": sum(row["is_wrong"] for row in rows),
        "errors": [row["reason"] for row in rows if row["result"] == "error"],
        "wrong": [[row["onnx"], row["vnnlib"]] for row in rows if row["is_wrong"]],
        "sat_not_replayed": [r["vnnlib"] for r in rows if r["is_replayed"] is False],
        "median_cpu_s": round(statistics.median(row["cpu_s"] for row in rows), 4),
        "cpu_s": round(sum(row["cpu_s"] for row in rows), 1),
        "longest_limit_s": max(row["limit_s"] for row in rows),
        "unsolved": [[r["onnx"], r["vnnlib"]] for r in rows if r["result"] not in DECIDED],
    }


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
