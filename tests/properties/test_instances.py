"""Lists of instances: every line answered once, across interruptions, whatever goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from holdfast.certificates.exact import holds
from holdfast.properties import PropertyError, instances, parse_counterexample, read_vnnlib
from holdfast.properties.instances import read_instances, run_instances

BOX = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 -1))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """y = relu(x) - 0.5 with properties of every outcome."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "b"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, (1, 1))],
        [value("y", TensorProto.FLOAT, (1, 1))],
        [numpy_helper.from_array(np.array([-0.5], np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "sat.vnnlib").write_text(BOX + "(assert (>= Y_0 0.25))")
    (tmp_path / "unsat.vnnlib").write_text(BOX + "(assert (>= Y_0 0.75))")
    (tmp_path / "empty.vnnlib").write_text(BOX + "(assert (>= X_0 2))")
    (tmp_path / "box.vnnlib").write_text(BOX)
    (tmp_path / "bad.vnnlib").write_text(BOX + "(assert (>= X_7 2))")
    lines = [
        f"net.onnx,{name}.vnnlib,20" for name in ("sat", "unsat", "empty", "bad", "unsat", "box")
    ]
    (tmp_path / "instances.csv").write_text("\n".join([*lines, "none.onnx,sat.vnnlib,20"]))
    return tmp_path


WANTED = ["sat", "unsat", "unsat", "error", "unsat", "sat", "error"]


def test_every_instance_has_its_answer(folder: Path):
    outcomes = list(
        run_instances(
            folder / "instances.csv", folder / "out.csv", counterexamples=folder / "found"
        )
    )
    assert [outcome.result for outcome in outcomes] == WANTED
    assert "contradict" in outcomes[2].reason
    assert "line 1, column" in outcomes[3].reason
    query = read_vnnlib(folder / "sat.vnnlib")
    answer = (folder / "found" / "0.txt").read_text()
    assert answer.startswith("sat\n((X_0 ")
    assert holds(query.text, *parse_counterexample(query, answer))
    assert len((folder / "out.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize("n_bytes", [0, 30, 80, 120, 200, 10_000])
def test_a_run_resumes_behind_the_last_whole_line(folder: Path, n_bytes: int):
    whole = list(run_instances(folder / "instances.csv", folder / "out.csv"))
    data = (folder / "out.csv").read_bytes()[:n_bytes]
    (folder / "out.csv").write_bytes(data)
    again = list(run_instances(folder / "instances.csv", folder / "out.csv"))
    assert [o.result for o in again] == [o.result for o in whole] == WANTED
    assert sum(o.is_resumed for o in again) == max(0, data.count(b"\n") - 1)
    rows = (folder / "out.csv").read_text().splitlines()
    assert len(rows) == 8
    assert all(row.count(",") >= 7 for row in rows)


def test_results_of_another_list_are_refused(folder: Path):
    list(run_instances(folder / "instances.csv", folder / "out.csv"))
    (folder / "other.csv").write_text("net.onnx,sat.vnnlib,20")
    with pytest.raises(PropertyError, match="another list"):
        list(run_instances(folder / "other.csv", folder / "out.csv"))


def test_malformed_lists_name_the_line(tmp_path: Path):
    (tmp_path / "list.csv").write_text("a.onnx,b.vnnlib,10\na.onnx,b.vnnlib\n")
    with pytest.raises(PropertyError, match="line 2"):
        read_instances(tmp_path / "list.csv")
    with pytest.raises(PropertyError, match="cannot read"):
        read_instances(tmp_path / "none.csv")


def test_clauses_that_contradict_themselves_are_told_of_beside_the_answer(folder: Path):
    part = BOX + "(assert (or (>= Y_0 0.25) (and (<= Y_0 0) (>= Y_0 1))))"
    (folder / "part.vnnlib").write_text(part)
    (folder / "one.csv").write_text("net.onnx,part.vnnlib,20")
    (outcome,) = run_instances(folder / "one.csv", folder / "out.csv")
    assert (outcome.result, outcome.reason) == ("sat", "1 of 2 clauses contradict themselves")


def test_a_counterexample_is_judged_by_the_text(folder: Path, monkeypatch):
    monkeypatch.setattr(instances, "holds", lambda *_: False)
    _, verdict = instances.decide(folder / "net.onnx", folder / "sat.vnnlib", 20.0)
    assert (verdict.status, verdict.counterexample) == ("unknown", None)
    assert "not its exact text" in verdict.reason


def test_a_limit_of_zero_seconds_is_a_timeout(folder: Path):
    (folder / "one.csv").write_text("net.onnx,unsat.vnnlib,0")
    (outcome,) = run_instances(folder / "one.csv", folder / "zero.csv")
    assert outcome.result in {"timeout", "unsat"}
    assert outcome.seconds < 2
