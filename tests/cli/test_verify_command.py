"""``verify`` and ``check``: every verdict, every wrong file, and lists that are resumed."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from holdfast.certificates.exact import holds
from holdfast.errors import CertificateError, GraphError, InputError, PropertyError
from holdfast.properties import parse_counterexample, read_vnnlib

DATA = Path(os.environ.get("HOLDFAST_DATA", "../shared/data")).absolute() / "vnn"
BOX = "".join(
    f"(declare-const X_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 1))\n" for i in range(2)
)
Y = "(declare-const Y_0 Real)\n"


def save(path, nodes, weights, n_inputs=2):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, (1, n_inputs))],
        [value("y", TensorProto.FLOAT, (1, 1))],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def layers(last="Relu"):
    """y = |x_0| + |x_1|, where ``last`` is the ReLU."""
    return [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node(last, ["z"], ["a"], name="middle"),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]


WEIGHTS = {"w": [[1, -1, 0, 0], [0, 0, 1, -1]], "b": [0, 0, 0, 0], "v": [[1], [1], [1], [1]]}


@pytest.fixture
def files(home):
    """The largest output over the box is 2, the least 0."""
    save(home / "net.onnx", layers(), WEIGHTS)
    (home / "sat.vnnlib").write_text(BOX + Y + "(assert (>= Y_0 1.75))")
    (home / "unsat.vnnlib").write_text(BOX + Y + "(assert (>= Y_0 2.01))")
    (home / "empty.vnnlib").write_text(BOX + Y + "(assert (>= X_1 3))(assert (>= Y_0 1))")
    (home / "against.vnnlib").write_text(BOX + Y + "(assert (>= Y_0 1))(assert (<= Y_0 0))")
    return home


def test_a_violation_is_printed_and_true(cli, files):
    result = cli("verify", "net.onnx", "sat.vnnlib", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("sat\n((X_0 ")
    assert result.stderr.startswith("Violated: onnxruntime gives")
    query = read_vnnlib("sat.vnnlib")
    x, y = parse_counterexample(query, result.stdout)
    assert holds(query.text, x, y)
    session = onnxruntime.InferenceSession("net.onnx")
    assert session.run(None, {"x": x.astype(np.float32)[None]})[0].ravel().tolist() == y.tolist()


def test_a_proof_is_written_and_checked(cli, files):
    result = cli("verify", "net.onnx", "unsat.vnnlib", "--certificate", "proof.zip")
    assert (result.exit_code, result.stdout) == (0, "unsat\n"), result.output
    assert "Proven: no input violates" in result.stderr
    assert "rounding at run time is not covered" in result.stderr
    assert "holdfast check proof.zip net.onnx unsat.vnnlib" in result.stderr
    checked = cli("check", "proof.zip", "net.onnx", "unsat.vnnlib")
    assert (checked.exit_code, checked.stdout) == (0, "accepted\n"), checked.output
    told = json.loads(cli("check", "proof.zip", "net.onnx", "unsat.vnnlib", "--json").stdout)
    assert (told["result"], told["reason"]) == ("accepted", None)
    assert told["cases"] >= 1
    assert told["smallest_bound"] > 0
    other = cli("check", "proof.zip", "net.onnx", "sat.vnnlib")
    assert (other.exit_code, other.stdout) == (1, "refused\n")
    assert "made for another property" in other.stderr
    save(files / "other.onnx", layers(), {**WEIGHTS, "v": [[1], [1], [1], [0.5]]})
    other = cli("check", "proof.zip", "other.onnx", "unsat.vnnlib")
    assert (other.exit_code, other.stdout) == (1, "refused\n")
    assert "made for another network" in other.stderr
    (files / "proof.zip").write_bytes((files / "proof.zip").read_bytes()[:90])
    assert "not a whole proof file" in cli("check", "proof.zip", "net.onnx", "unsat.vnnlib").stderr
    none = cli("check", "none.zip", "net.onnx", "unsat.vnnlib")
    assert (none.exit_code, "there is no proof file 'none.zip'" in none.stderr) == (1, True)
    swapped = cli("verify", "unsat.vnnlib", "net.onnx")
    assert "it is no text; the network's file comes first" in swapped.stderr
    refused = cli("check", "none.zip", "net.onnx", "unsat.vnnlib", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["result"]) == (1, "refused")


def test_no_proof_of_a_violation(cli, files):
    result = cli("verify", "net.onnx", "sat.vnnlib", "--certificate", "proof.zip")
    assert result.exit_code == 0
    assert "No proof is written: the answer is sat" in result.stderr
    assert not (files / "proof.zip").exists()


def test_networks_that_proofs_do_not_cover_are_told_before_the_search(cli, files, monkeypatch):
    save(files / "tanh.onnx", layers("Tanh"), WEIGHTS)
    assert cli("verify", "tanh.onnx", "unsat.vnnlib").stdout == "unsat\n"
    monkeypatch.setattr("holdfast.verifiers.verify.verify", None)
    result = cli("verify", "tanh.onnx", "unsat.vnnlib", "--certificate", "proof.zip")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No proof can be written for this network: operator Tanh" in result.stderr


@pytest.mark.parametrize("name", ["empty", "against"])
def test_nothing_can_violate_a_property_that_contradicts_itself(cli, files, name):
    words = ("verify", "net.onnx", f"{name}.vnnlib", "--certificate", "proof.zip")
    result = cli(*words)
    assert (result.exit_code, result.stdout) == (0, "unsat\n"), result.output
    assert "Warning: 1 of 1 clauses contradict themselves" in result.stderr
    checked = cli("check", "proof.zip", "net.onnx", f"{name}.vnnlib")
    assert checked.stdout == "accepted\n", checked.stderr


@pytest.mark.parametrize("name", ["sat", "unsat"])
def test_without_time_there_is_no_wrong_answer(cli, files, name):
    words = ("verify", "net.onnx", f"{name}.vnnlib", "--timeout", "0", "--no-attack")
    result = cli(*words)
    assert (result.exit_code, result.stdout) == (11, "timeout\n"), result.output
    assert "Open: neither a violation nor a proof was found within 0 s" in result.stderr


def test_unknown_is_told_with_its_reason(cli, files, monkeypatch):
    monkeypatch.setattr("holdfast.properties.instances.holds", lambda *_: False)
    result = cli("verify", "net.onnx", "sat.vnnlib")
    assert (result.exit_code, result.stdout) == (10, "unknown\n")
    assert "but not its exact text" in result.stderr


def test_json(cli, files):
    result = cli("verify", "net.onnx", "sat.vnnlib", "--json")
    found = json.loads(result.stdout)
    assert found["result"] == "sat"
    assert sum(np.abs(found["counterexample"]["x"])) >= 1.75
    found = json.loads(cli("verify", "net.onnx", "empty.vnnlib", "--json").stdout)
    assert (found["result"], found["counterexample"]) == ("unsat", None)
    assert "contradict" in found["warnings"][0]


TWO_NETWORKS = """(vnnlib-version <2.0>)
(declare-network f (declare-input A float32 [2]) (declare-output B float32 [1]))
(declare-network g (declare-input C float32 [2]) (declare-output D float32 [1]))
(assert (and (>= A[0] 0) (<= A[0] 1) (>= A[1] 0) (<= A[1] 1)))
(assert (and (>= C[0] 0) (<= C[0] 1) (>= C[1] 0) (<= C[1] 1)))
(assert (>= B[0] D[0]))
"""
BAD = {
    "no network": (None, BOX + Y, "no such file"),
    "no onnx": (b"\x00\xffnonsense", BOX + Y, "not a readable ONNX model"),
    "empty onnx": (b"", BOX + Y, "a single one is expected"),
    "operator": (layers("Det"), BOX + Y, "operator 'Det' at 'middle' is not supported"),
    "dangling": ([*layers()[:2], helper.make_node("MatMul", ["a", "u"], ["y"])], BOX + Y, "MatMul"),
    "nan": (np.nan, BOX + Y, "weight 'w' has values that are not finite"),
    "inputs": (layers(), BOX.replace("X_1", "X_2"), "X_1 is not declared"),
    "counts": (
        layers(),
        BOX + "(declare-const X_2 Real)(assert (>= X_2 0))(assert (<= X_2 0))" + Y,
        "the property has 3 inputs and 1 outputs, the network 2 and 1",
    ),
    "counts of nothing": (
        layers(),
        BOX + Y + "(declare-const Y_1 Real)(assert (>= X_0 5))",
        "declares 2 outputs, the network has 1",
    ),
    "unbounded": (layers(), BOX.replace("(assert (<= X_1 1))", "") + Y, "input X_1 lies in"),
    "text": (layers(), BOX + Y + "(assert (>= Y_0 1)", "line 4, column 19"),
    "no property": (layers(), None, "cannot read the property file"),
    "several networks": (layers(), TWO_NETWORKS, "--network f=f.onnx --network g=g.onnx"),
    "shapes": (
        [*layers()[:1], helper.make_node("MatMul", ["z", "w"], ["y"], name="last")],
        BOX + Y,
        "last",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_explained(cli, home, name):
    network, text, words = BAD[name]
    if isinstance(network, bytes):
        (home / "net.onnx").write_bytes(network)
    elif network is not None:
        nan = isinstance(network, float)
        weights = {**WEIGHTS, "w": np.full((2, 4), np.nan)} if nan else WEIGHTS
        save(home / "net.onnx", layers() if nan else network, weights)
    if text is not None:
        (home / "p.vnnlib").write_text(text)
    result = cli("verify", "net.onnx", "p.vnnlib", "--timeout", "5")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Error: " in result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_several_networks_have_a_file_each(cli, files):
    (files / "two.vnnlib").write_text(
        TWO_NETWORKS.replace("C float32", "C Real") + "(assert (> (- B[0] D[0]) 1.5))"
    )
    words = "--network", "f=net.onnx", "--network", "g=net.onnx"
    result = cli("verify", "two.vnnlib", *words)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "sat"), result.output
    query = read_vnnlib("two.vnnlib")
    x, y = parse_counterexample(query, result.stdout)
    assert holds(query.text, x, y)
    assert y.tolist() == [np.abs(x[:2]).sum(), np.abs(x[2:]).sum()]
    (files / "two.vnnlib").write_text(TWO_NETWORKS + "(assert (> (- B[0] D[0]) 2.5))")
    assert cli("verify", "two.vnnlib", *words).stdout == "unsat\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("net.onnx",), "Which network and which property?"),
        (("net.onnx", "sat.vnnlib", "--out", "r.csv"), "belong to --instances"),
        (("net.onnx", "sat.vnnlib", "--timeout", "nan"), "timeout"),
        (("net.onnx", "sat.vnnlib", "--timeout", "-1"), "timeout"),
        (("net.onnx", "sat.vnnlib", "--certificate", "no/p.zip"), "make the folder"),
        (("--instances", "i.csv"), "Give --out"),
        (("net.onnx", "--instances", "i.csv", "--out", "r.csv"), "leave out NETWORK"),
        (("p.vnnlib", "--network", "f"), "must be NAME=FILE"),
        (("p.vnnlib", "--network", "f=a", "--network", "f=b"), "f has the file a already"),
        (("a.onnx", "p.vnnlib", "--network", "f=a"), "the property is the only argument"),
        (("sat.vnnlib", "--network", "f=net.onnx"), "no network 'f' is declared"),
        (("--instances", "none.csv", "--out", "r.csv"), "cannot read the list of instances"),
    ],
)
def test_options_that_do_not_fit_are_explained(cli, files, words, told):
    result = cli("verify", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (files / "r.csv").exists()


def test_errors_belong_to_one_tree():
    for error in (GraphError, PropertyError, CertificateError):
        assert issubclass(error, InputError)
        assert error.exit_code == 2


@pytest.fixture
def listed(files):
    names = ("sat", "unsat", "empty", "none")
    (files / "list").mkdir()
    lines = [f"../net.onnx,../{name}.vnnlib,20" for name in names]
    (files / "list/instances.csv").write_text("\n".join(lines))
    return "verify", "--instances", "list/instances.csv", "--out", "results.csv"


def test_a_list_is_decided_and_resumed(cli, files, listed):
    result = cli(*listed, "--counterexamples", "found")
    assert result.exit_code == 1
    assert "1/4  sat  " in result.stdout
    assert "1 sat, 2 unsat, 1 error. Written: results.csv" in result.stdout
    assert "1 of 4 instances could not be decided" in result.stderr
    assert (files / "found/0.txt").read_text().startswith("sat\n((X_0")
    whole = (files / "results.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert [row["result"] for row in rows] == ["sat", "unsat", "unsat", "error"]
    (files / "results.csv").write_text("".join(whole.splitlines(keepends=True)[:3]))
    again = cli(*listed)
    assert again.stdout.count("from an earlier run") == 2
    assert len((files / "results.csv").read_text().splitlines()) == 5


def test_a_list_as_json_and_without_time(cli, files, listed):
    result = cli(*listed, "--json", "--timeout", "0", "--no-attack")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["result"] for entry in found] == ["timeout", "timeout", "unsat", "error"]


def test_a_list_is_interrupted_and_shown_on_a_terminal(cli, files, listed, monkeypatch):
    from holdfast.properties import instances

    decide, calls = instances.decide, []

    def stop_at_third(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decide(*args, **options)

    monkeypatch.setattr(instances, "decide", stop_at_third)
    result = cli(*listed)
    assert result.exit_code == 130
    assert "the same command again goes on" in result.stderr
    monkeypatch.setattr("holdfast.cli.instances.is_terminal", lambda: True)
    result = cli(*listed)
    assert "4/4" in result.stdout
    assert "1 sat, 2 unsat, 1 error" in result.stdout
    assert "1/4  sat" not in result.stdout
    assert "4/4  error" in result.stdout


@pytest.mark.parametrize(
    ("folder", "network", "prop", "wanted"),
    [
        ("acasxu", "ACASXU_run2a_1_1_batch_2000.onnx", "prop_1.vnnlib", "unsat"),
        ("acasxu", "ACASXU_run2a_1_2_batch_2000.onnx", "prop_2.vnnlib", "sat"),
        ("rl_benchmarks", "cartpole.onnx", "cartpole_case_unsafe_29.vnnlib", "sat"),
    ],
)
def test_instances_of_the_competition(cli, home, folder, network, prop, wanted):
    files = DATA / folder / "onnx" / network, DATA / folder / "vnnlib" / prop
    if not all(file.is_file() for file in files):
        pytest.skip("needs the competition's benchmarks in $HOLDFAST_DATA")
    result = cli("verify", *files, "--certificate", "proof.zip")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[0] == wanted
    if wanted == "sat":
        query = read_vnnlib(files[1])
        assert holds(query.text, *parse_counterexample(query, result.stdout))
    else:
        assert cli("check", "proof.zip", *files).stdout == "accepted\n"
