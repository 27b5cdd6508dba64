"""Verdicts on competition instances with known answers; needs the shared data."""

import csv
import os
import time
from pathlib import Path

import onnxruntime
import pytest

from holdfast.properties.vnnlib import read_vnnlib
from holdfast.verifiers.verify import verify

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[2] / "../shared/data")) / "vnn"
onnxruntime.set_default_logger_severity(3)


def instances(benchmark, step, offset=0):
    path = DATA / benchmark / "ground_truth.csv"
    if not path.exists():
        pytest.skip(f"no {path}; set HOLDFAST_DATA")
    with path.open() as file:
        return list(csv.DictReader(file))[offset::step]


def decide(benchmark, row, timeout_s, attack=True):
    query = read_vnnlib(DATA / benchmark / row["vnnlib"])
    network = DATA / benchmark / row["onnx"]
    verdict = verify(
        network, query.prop, timeout_s=timeout_s, attack=attack, clock=time.process_time
    )
    return query.prop, verdict


@pytest.mark.parametrize(
    ("benchmark", "step"), [("rl_benchmarks", 12), ("acasxu", 31), ("mnist_fc", 30)]
)
def test_verdicts_agree_with_the_ground_truth(benchmark, step):
    for row in instances(benchmark, step):
        prop, verdict = decide(benchmark, row, 20)
        assert verdict.status == row["verdict"].rstrip("1"), row
        if verdict.counterexample is not None:
            x, clause = verdict.counterexample.x, prop.clauses[verdict.counterexample.clause]
            inside = (x >= clause.lower) & (x <= clause.upper)
            assert (~inside).sum() == verdict.counterexample.rounded


@pytest.mark.parametrize("benchmark", ["rl_benchmarks", "acasxu", "mnist_fc"])
def test_bounds_alone_never_refute_a_replayed_counterexample(benchmark):
    rows = [r for r in instances(benchmark, 1) if r["verdict"] == "sat"]
    for row in rows[:: max(1, len(rows) // 6)]:
        _, verdict = decide(benchmark, row, 0.5, attack=False)
        assert verdict.status in ("timeout", "unknown"), row
