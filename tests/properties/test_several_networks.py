"""Properties of several networks: which file is which, how inputs hang together, right verdicts."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import several
from holdfast.certificates.exact import holds
from holdfast.graphs.errors import GraphError
from holdfast.graphs.joined import shared
from holdfast.properties import (
    PropertyError,
    format_counterexample,
    networks,
    parse_counterexample,
    parse_vnnlib,
)
from holdfast.properties.coupling import couple
from holdfast.properties.formula import Bound, Row
from holdfast.properties.instances import decide, run_instances
from holdfast.properties.networks import Joined, assign
from holdfast.properties.structure import Structure
from several import SAME_INPUTS, WEIGHTS, apart, box, declare, near, save_network

ISOMORPHIC, EQUAL = "(isomorphic-to f)", "(equal-to f)"
FIRST, SECOND = WEIGHTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """f, a copy of it, and one with a weight changed a little and one much."""
    save_network(tmp_path / "f.onnx")
    save_network(tmp_path / "copy.onnx")
    for name, change in (("little", 0.001), ("much", 1.0)):
        second = SECOND.copy()
        second[3, 1] += change
        save_network(tmp_path / f"{name}.onnx", FIRST, second)
    return tmp_path


def ask(folder: Path, files, text: str, seconds: float = 20.0, **options):
    (folder / "prop.vnnlib").write_text(text)
    return decide(files, folder / "prop.vnnlib", seconds, **options)


def outputs(file: Path, x: np.ndarray) -> np.ndarray:
    """Of one network by itself."""
    session = onnxruntime.InferenceSession(str(file))
    return session.run(None, {session.get_inputs()[0].name: x.reshape(1, -1)})[0].ravel()


def pair(folder: Path, other: str) -> dict[str, Path]:
    return {"f": folder / "f.onnx", "g": folder / f"{other}.onnx"}


@pytest.mark.parametrize(
    ("other", "limit", "wanted"),
    [("copy", 1e-6, "unsat"), ("little", 0.01, "unsat"), ("much", 0.5, "sat")],
)
def test_equivalence_of_two_networks(folder: Path, other: str, limit: float, wanted: str):
    text = declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS + apart(limit)
    query, verdict = ask(folder, pair(folder, other), text)
    assert verdict.status == wanted
    if wanted == "sat":
        found = verdict.counterexample
        assert found is not None
        assert (found.x[:2] == found.x[2:]).all()
        y = [
            outputs(pair(folder, other)[k], x) for k, x in (("f", found.x[:2]), ("g", found.x[2:]))
        ]
        np.testing.assert_array_equal(found.y, np.concatenate(y))
        assert holds(query.text, found.x, found.y)


def test_bounds_alone_do_not_refute_a_violation(folder: Path):
    text = declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS + apart(0.5)
    _, verdict = ask(folder, pair(folder, "much"), text, 1.0, attack=False)
    assert verdict.status in ("timeout", "unknown")


@pytest.mark.parametrize(("sign", "wanted"), [(1.0, "unsat"), (-1.0, "sat")])
def test_monotonicity_with_two_copies_of_one_file(tmp_path: Path, sign: float, wanted: str):
    second = np.abs(SECOND[:, :1])
    second[0] *= sign * 20
    file = save_network(tmp_path / "m.onnx", np.abs(FIRST), second)
    order = (
        "(assert (>= X_f[0,0] (+ X_g[0,0] 0.01)))(assert (== X_f[0,1] X_g[0,1]))"
        "(assert (<= Y_f[0,0] Y_g[0,0]))"
    )
    text = declare(EQUAL, outputs=1) + box("X_f", 0) + box("X_g", 0) + order
    query, verdict = ask(tmp_path, file, text)
    assert verdict.status == wanted
    if verdict.counterexample is not None:
        assert holds(query.text, verdict.counterexample.x, verdict.counterexample.y)


@pytest.mark.parametrize(("radius", "limit", "wanted"), [(0.01, 1.0, "unsat"), (0.2, 0.3, "sat")])
def test_robustness_as_a_relation(folder: Path, radius: float, limit: float, wanted: str):
    text = declare(EQUAL) + box("X_f") + box("X_g") + near(radius) + apart(limit)
    query, verdict = ask(folder, folder / "f.onnx", text)
    assert verdict.status == wanted
    if verdict.counterexample is not None:
        x, y = verdict.counterexample.x, verdict.counterexample.y
        assert holds(query.text, x, y)
        assert 0 < np.abs(x[2:] - x[:2]).max() <= radius
        np.testing.assert_array_equal(y[2:], outputs(folder / "f.onnx", x[2:]))


def test_free_inputs_are_placed_at_float32_inputs_inside_the_set(folder: Path):
    text = declare(EQUAL) + box("X_f", 0.1, 0.7) + box("X_g", 0.1, 0.7) + near(0.01)
    query = parse_vnnlib(text)
    joined = Joined.of(query, assign(query, folder / "f.onnx"))
    clause, rng = joined.prop.clauses[0], np.random.default_rng(0)
    assert len(clause.lower) == 4
    for _ in range(100):
        share = rng.uniform(size=4)
        share = np.where(rng.uniform(size=4) < 0.5, share, share.round())
        x, rounded = joined.placed(0, clause.lower + share * (clause.upper - clause.lower))
        assert (x.dtype, rounded) == (np.float32, 0)
        assert holds(text, x, joined.outputs(x))


def test_a_rounded_point_that_violates_nothing_is_no_counterexample(folder: Path):
    point = "(assert (== X_f[0,0] 0.1)) (assert (== X_f[0,1] 0.1))\n"  # has no float32
    found = []
    for limit in (1000.0, 0.0):
        query = parse_vnnlib(declare(EQUAL) + point + SAME_INPUTS + apart(limit))
        joined = Joined.of(query, assign(query, folder / "f.onnx"))
        found.append(joined.confirm(0, joined.prop.clauses[0].lower))
    assert found[0] is None
    assert found[1] is not None
    assert found[1].rounded > 0


def test_a_counterexample_of_several_networks_is_judged_by_the_text(folder: Path, monkeypatch):
    query = parse_vnnlib(declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS + apart(0.5))
    joined = Joined.of(query, assign(query, pair(folder, "much")))
    corner = np.ones(2)
    assert any(joined.confirm(k, s * corner) for k in range(4) for s in (-1, 1))
    monkeypatch.setattr(networks, "holds", lambda *_: False)
    assert not any(joined.confirm(k, s * corner) for k in range(4) for s in (-1, 1))


def test_inputs_limited_through_others_alone_are_bounded(folder: Path):
    text = declare(EQUAL) + box("X_f") + near(0.01) + apart(1.0)
    assert ask(folder, folder / "f.onnx", text)[1].status == "unsat"
    with pytest.raises(PropertyError, match=r"input X_g\[0,0\] lies in \[-inf, inf\]"):
        ask(folder, folder / "f.onnx", declare(EQUAL) + box("X_f") + apart(1.0))


def test_an_alternative_between_inputs_counts_for_its_own_clause_only(folder: Path):
    tied = (
        "(assert (or (and (== X_f[0,0] X_g[0,0]) (>= Y_f[0,0] 90)) (>= (- Y_f[0,0] Y_g[0,0]) 1)))"
    )
    query, verdict = ask(folder, pair(folder, "copy"), declare() + box("X_f") + box("X_g") + tied)
    assert verdict.status == "sat"
    assert query.coupled is None


def test_values_inside_and_several_inputs_and_outputs(tmp_path: Path):
    several.save_two_by_two(tmp_path / "net.onnx")
    text = (
        "(vnnlib-version <2.0>)(declare-network n (declare-input U Real [1,1])"
        '(declare-input V float32 [1,1]) (declare-hidden R Real [1,1] "r")'
        "(declare-output S Real [1,1]) (declare-output D Real [1,1]))"
        "(assert (and (>= U[0,0] 0) (<= U[0,0] 1) (>= V[0,0] -1) (<= V[0,0] 1)))"
    )
    wanted = "(assert (and (>= R[0,0] 0.5) (>= S[0,0] 1.25) (<= D[0,0] -0.125)))"
    query, verdict = ask(tmp_path, tmp_path / "net.onnx", text + wanted)
    assert verdict.status == "sat"
    found = verdict.counterexample
    assert found is not None
    u, v = found.x
    np.testing.assert_array_equal(found.y, np.float32([max(v, 0), u + max(v, 0), u - v]))
    lines = format_counterexample(query, found.x, found.y).splitlines()
    assert lines[::2] == ["U Real [1,1]", "V float32 [1,1]", "R Real [1,1]", "S Real [1,1]",
                          "D Real [1,1]"]  # fmt: skip
    x, y = parse_counterexample(query, "\n".join(lines))
    np.testing.assert_array_equal((*x, *y), (*found.x, *found.y))
    _, verdict = ask(tmp_path, tmp_path / "net.onnx", text + "(assert (>= R[0,0] 1.01))")
    assert verdict.status == "unsat"
    with pytest.raises(GraphError, match="no value 'nowhere'"):
        ask(tmp_path, tmp_path / "net.onnx", text.replace('"r"', '"nowhere"') + wanted)


def test_the_oldest_operator_set_and_three_networks(folder: Path):
    save_network(folder / "old.onnx", opset=7)
    third = declare(EQUAL).splitlines()[2].replace("_g", "_h").replace("network g", "network h")
    same = "".join(f"(assert (== X_h[0,{i}] X_g[0,{i}]))" for i in (0, 1))
    goal = "(assert (>= (- (+ Y_f[0,0] Y_h[0,0]) (* 2 Y_g[0,0])) 0.001))"
    text = declare(ISOMORPHIC) + third + box("X_f") + SAME_INPUTS + same + goal
    assert ask(folder, pair(folder, "old"), text)[1].status == "unsat"
    query, verdict = ask(folder, pair(folder, "old"), text.replace(" 0.001", " 0"))
    assert verdict.status == "sat"
    assert len(verdict.counterexample.x) == 6
    assert query.coupled is not None
    assert len(query.coupled.prop.clauses[0].lower) == 2


def test_common_layers_are_computed_once(folder: Path):
    text = declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS + apart(1.0)
    query = parse_vnnlib(text)
    same, other = (
        Joined.of(query, assign(query, pair(folder, name))).graph for name in ("copy", "little")
    )
    # Both end in reshapes and a concatenation; of two equal networks one is left.
    kinds = [[type(node.op).__name__ for node in graph.nodes] for graph in (same, other)]
    assert (kinds[0].count("Linear"), kinds[1].count("Linear")) == (2, 3)
    assert shared(other) == other or len(shared(other).nodes) == len(other.nodes)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        (declare("(equal-to h)"), 3, 30, "'h' is not declared before"),
        (declare(EQUAL).replace("X_g Real", "X_g float32"), 3, 30, "X_g is float32"),
        (declare(ISOMORPHIC).replace("Y_g Real [1,2]", "Y_g Real [1,3]"), 3, 35, "Y_g is Real"),
        (declare(ISOMORPHIC, hidden='(declare-hidden H Real [1,8] "hidden")').replace(
            "(declare-output Y_g", '(declare-hidden G Real [1,7] "hidden") (declare-output Y_g'),
         3, 35, "G is Real"),
        (declare(EQUAL + ISOMORPHIC), 3, 33, "has a relation already"),
        (declare(hidden="(declare-hidden H Real [1,8])"), 2, 79, "needs the name"),
        (declare().replace("[1,2]))", "[1,2]) (declare-hidden H Real [1] \"h\"))", 1), 2, 85,
         "before the outputs"),
        (declare().replace("X_f Real [1,2]", "X_f Real [1,2] initialized"), 2, 50,
         "takes its value from the file"),
        (declare() + "(assert (<= (* X_f[0,0] Y_g[0,0]) 1))", 4, 14, "only linear"),
    ],
)  # fmt: skip
def test_declarations_that_do_not_fit_say_where(text: str, line: int, column: int, words: str):
    with pytest.raises(PropertyError, match=words) as caught:
        parse_vnnlib(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_relation_to_a_related_network_is_refused():
    third = declare("(equal-to g)").splitlines()[2].replace("_g", "_h").replace("k g", "k h")
    with pytest.raises(PropertyError, match="'g' is equal-to 'f' itself"):
        parse_vnnlib(declare(EQUAL) + third)


def test_files_that_do_not_fit_the_declarations(folder: Path):
    query, copies = parse_vnnlib(declare()), parse_vnnlib(declare(EQUAL))
    f, much = folder / "f.onnx", folder / "much.onnx"
    with pytest.raises(PropertyError, match=r"networks f, g: .* --network f=f.onnx --network g="):
        assign(query, f)
    with pytest.raises(PropertyError, match="network g has no file"):
        assign(query, {"f": f})
    with pytest.raises(PropertyError, match="no network 'q' is declared; declared: f, g"):
        assign(query, {"f": f, "g": f, "q": f})
    assert assign(copies, f) == assign(copies, {"f": f, "g": folder / "copy.onnx"})
    with pytest.raises(PropertyError, match="g is equal-to f, but"):
        assign(copies, {"f": f, "g": much})
    with pytest.raises(PropertyError, match="cannot read the network"):
        assign(copies, {"f": f, "g": folder / "none.onnx"})
    narrow = parse_vnnlib(declare(outputs=3))
    with pytest.raises(GraphError, match=r"\['y'\] of network 'f' have \[2\] elements, \[3\]"):
        Joined.of(narrow, assign(narrow, {"f": f, "g": f}))
    double = parse_vnnlib(declare().replace("X_f Real", "X_f float64"))
    with pytest.raises(PropertyError, match=r"X_f is declared as float64, 'x' of .* is float32"):
        Joined.of(double, assign(double, {"f": f, "g": f}))
    long = parse_vnnlib(declare().replace("X_f Real [1,2]", "X_f Real [1,3]"))
    with pytest.raises(GraphError, match="2 elements, 3 are declared"):
        Joined.of(long, assign(long, {"f": f, "g": f}))


def other_structures(folder: Path) -> dict[str, tuple[Path, str]]:
    """Networks from (1, 2) to (1, 2) that are not f's kind, and what is said of them."""
    wide = np.random.default_rng(5)
    node, made = helper.make_node, {}
    save_network(folder / "wide.onnx", wide.normal(size=(2, 9)), wide.normal(size=(9, 2)))
    made["wide.onnx"] = folder / "wide.onnx", "in the shapes of weights"
    for name, nodes, words in (
        ("sigmoid", [node("Sigmoid", ["before"], ["hidden"])], "1 and 0 Relu, 0 and 1 Sigmoid"),
        ("twice", [node("Relu", ["before"], ["a"]), node("Relu", ["a"], ["hidden"])],
         "1 and 2 Relu"),
    ):  # fmt: skip
        model = onnx.load(folder / "f.onnx")
        first, _, last = model.graph.node
        kept = [*map(type(first).FromString, (first.SerializeToString(), last.SerializeToString()))]
        del model.graph.node[:]
        model.graph.node.extend([kept[0], *nodes, kept[1]])
        onnx.save(model, folder / f"{name}.onnx")
        made[f"{name}.onnx"] = folder / f"{name}.onnx", words
    return made


def test_isomorphic_networks_have_the_same_structure(folder: Path):
    query = parse_vnnlib(declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS + apart(1.0))
    free = parse_vnnlib(declare() + box("X_f") + SAME_INPUTS + apart(1.0))
    for file, words in other_structures(folder).values():
        files = {"f": folder / "f.onnx", "g": file}
        with pytest.raises(PropertyError, match=f"g is isomorphic-to f, but .*{words}"):
            Joined.of(query, assign(query, files))
        assert Joined.of(free, assign(free, files)).graph
    assert Joined.of(query, assign(query, pair(folder, "much"))).graph


NODES = {
    "plain": ["a=Gemm(x,w,b) transB=0", "r=Relu(a)", "s=Gemm(x,w,b) transB=0", "y=Add(r,s)"],
    "other names and order": ["q=Gemm(x,w,b) transB=0", "p=Gemm(x,w,b) transB=0", "r=Relu(p)",
                              "y=Add(q,r)"],
    "other setting": ["a=Gemm(x,w,b) transB=1", "r=Relu(a)", "s=Gemm(x,w,b) transB=0",
                      "y=Add(r,s)"],
    "other wiring": ["a=Gemm(x,w,b) transB=0", "r=Relu(a)", "s=Gemm(r,w,b) transB=0", "y=Add(r,s)"],
    "shared layer": ["a=Gemm(x,w,b) transB=0", "r=Relu(a)", "y=Add(r,a)"],
    "other output": ["a=Gemm(x,w,b) transB=0", "r=Relu(a)", "s=Gemm(x,w,b) transB=0", "z=Add(r,s)",
                     "y=Relu(z)"],
}  # fmt: skip


def made_graph(lines: list[str]) -> onnx.GraphProto:
    nodes = []
    for line in lines:
        name, kind, inputs, _, flag = re.fullmatch(
            r"(\w+)=(\w+)\(([\w,]*)\)( transB=(\d))?", line
        ).groups()
        options = {} if flag is None else {"transB": int(flag)}
        nodes.append(helper.make_node(kind, inputs.split(","), [name], **options))
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.ones(s, np.float32), n)
               for n, s in (("w", (2, 2)), ("b", (2,)))]  # fmt: skip
    ends = [value("x", 1, (1, 2))], [value("y", 1, (1, 2))]
    return helper.make_graph(nodes, "g", *ends, weights)


@pytest.mark.parametrize("name", NODES)
def test_structures_are_told_apart(name: str):
    first, second = (Structure.of(made_graph(NODES[key])) for key in ("plain", name))
    assert bool(first.difference(second)) == (name not in ("plain", "other names and order"))


def test_lists_of_instances_name_several_networks(folder: Path):
    text = declare(ISOMORPHIC) + box("X_f") + SAME_INPUTS
    (folder / "far.vnnlib").write_text(text + apart(0.5))
    rows = ["\"[('f', 'f.onnx'), ('g', 'copy.onnx')]\",far.vnnlib,20",
            "\"[('f', 'f.onnx'), ('g', 'much.onnx')]\",far.vnnlib,20",
            "\"[('f', 'f.onnx')\",far.vnnlib,20", "f.onnx,far.vnnlib,20"]  # fmt: skip
    (folder / "instances.csv").write_text("\n".join(rows))
    found = list(run_instances(folder / "instances.csv", folder / "out.csv"))
    assert [outcome.result for outcome in found] == ["unsat", "sat", "error", "error"]
    assert "is not a list of networks" in found[2].reason
    assert "give a file for each" in found[3].reason
    again = list(run_instances(folder / "instances.csv", folder / "out.csv"))
    assert all(outcome.is_resumed for outcome in again)


tenths = st.integers(-10, 10).map(lambda v: Fraction(v, 10))
differences = st.tuples(st.integers(0, 4), st.integers(0, 4), tenths, tenths).filter(
    lambda t: t[0] != t[1]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(tenths, min_size=5, max_size=5), st.lists(differences, max_size=6), st.data())
def test_every_input_of_the_set_comes_from_a_free_one(x, pairs, data):
    """Constraints are drawn around a point; the point must have free inputs in their box."""
    rows = []
    for i, j, slack, scale in pairs:
        # scale (x_j - x_i) <= scale (x_j - x_i at the point) + |slack|, or an equality
        scale = scale or Fraction(1)
        gap = scale * (x[j] - x[i])
        rows.append(Row({i: -scale, j: scale}, -gap - abs(slack)))
        if slack <= 0:
            rows.append(Row({i: scale, j: -scale}, gap - abs(slack)))
    bounds = [
        Bound(i, upper, float(x[i]) + (1 if upper else -1) * data.draw(st.sampled_from([0.5, 1.0])))
        for i in range(5)
        for upper in (False, True)
    ]
    coupling = couple(rows, bounds, 5)
    z: list[Fraction | None] = [None] * len(coupling.lower)
    for k in range(5):
        if coupling.shift[k] < 0:
            value = z[coupling.base[k]]
            assert value in (None, x[k])
            z[coupling.base[k]] = x[k]
    for k in range(5):
        if (s := coupling.shift[k]) >= 0:
            distance = x[k] - z[coupling.base[k]]
            assert z[s] in (None, distance)
            z[s] = distance
    for value, lower, upper in zip(z, coupling.lower, coupling.upper, strict=True):
        assert value is not None
        assert lower <= value <= upper
    # Rows that are left out hold in the whole box, and those that are kept mean the same.
    drawn = [
        low + data.draw(st.fractions(0, 1, max_denominator=7)) * (high - low)
        for low, high in zip(coupling.lower, coupling.upper, strict=True)
    ]
    moved = [Fraction(0) if s < 0 else drawn[s] for s in coupling.shift]
    point = [drawn[b] + m for b, m in zip(coupling.base, moved, strict=True)]
    kept = [atom for atom in coupling.rewritten(rows) if isinstance(atom, Row)]
    assert all(_holds(row, drawn) for row in kept) == all(_holds(row, point) for row in rows)


def _holds(row: Row, values: list[Fraction]) -> bool:
    total = row.constant + sum(c * values[v] for v, c in row.terms.items())
    return total < 0 or (total == 0 and not row.strict)
