"""The parser against hand-worked cases, random formulas and every file of the competition data."""

from __future__ import annotations

import csv
import gzip
import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.certificates.clauses import goals
from holdfast.certificates.exact import exact_clauses, read_exact
from holdfast.properties import PropertyError, holds, parse_vnnlib, read_vnnlib
from holdfast.verifiers.problem import Clause

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "vnn"


def declare(n_inputs: int = 2, n_outputs: int = 2) -> str:
    names = [f"X_{i}" for i in range(n_inputs)] + [f"Y_{i}" for i in range(n_outputs)]
    return "\n".join(f"(declare-const {name} Real)" for name in names)


def inside(clause: Clause, x: np.ndarray, y: np.ndarray) -> bool:
    in_box = (clause.lower <= x).all() and (x <= clause.upper).all()
    return bool(in_box) and clause.is_violated(x, y)


BOX = "(assert (<= X_0 1))(assert (>= X_0 -1))(assert (<= X_1 0.5))(assert (>= X_1 0))"


def test_box_and_output_rows():
    query = parse_vnnlib(declare() + BOX + "(assert (>= Y_0 3.5)) (assert (<= Y_1 Y_0))")
    (clause,) = query.prop.clauses
    assert clause.lower.tolist() == [-1, 0]
    assert clause.upper.tolist() == [1, 0.5]
    assert clause.C.tolist() == [[-1, 0], [-1, 1]]
    assert clause.d.tolist() == [3.5, 0]
    assert clause.D is None
    assert clause.strict is None
    assert (query.n_inputs, query.n_outputs, query.version) == (2, 2, "1.0")


def test_a_clause_without_outputs_is_violated_all_over_its_box():
    (clause,) = parse_vnnlib(declare() + BOX).prop.clauses
    assert clause.is_violated(np.zeros(2), np.full(2, 1e9))


def test_boxes_inside_disjuncts_are_cut_with_the_common_box():
    text = "(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (>= X_0 0.5) (>= Y_0 1))))"
    first, second = parse_vnnlib(declare() + BOX + text).prop.clauses
    assert (first.lower[0], first.upper[0]) == (-1, 0)
    assert (second.lower[0], second.upper[0]) == (0.5, 1)
    assert (second.C.tolist(), second.d.tolist()) == ([[-1, 0]], [1])


def test_nested_formulas_multiply_out():
    text = "(assert (and (or (<= Y_0 0) (and (<= Y_1 0) (or (<= Y_0 5) (<= Y_1 5)))) (<= Y_0 9)))"
    assert len(parse_vnnlib(declare() + BOX + text).prop.clauses) == 3


def test_arithmetic_and_constraints_over_inputs_and_outputs():
    text = "(assert (<= (+ (* 2 X_0) (- Y_1) (/ 1 4)) (- X_1 Y_0 1)))"
    (clause,) = parse_vnnlib(declare() + BOX + text).prop.clauses
    assert clause.C.tolist() == [[1, -1]]
    assert clause.D is not None
    assert clause.D.tolist() == [[2, -1]]
    assert clause.d.tolist() == [1.25]


def test_coefficients_become_whole_numbers_instead_of_being_rounded():
    query = parse_vnnlib(declare() + BOX + "(assert (<= (* 0.1 Y_0) (* 0.3 Y_1)))")
    assert query.is_exact
    assert query.prop.clauses[0].C.tolist() == [[1, -3]]
    (clause,) = parse_vnnlib(
        declare() + BOX + "(assert (<= (+ (* 0.1 Y_0) 0.75) (* 0.3 Y_1)))"
    ).prop.clauses
    assert (clause.C.tolist(), clause.d.tolist()) == ([[1, -3]], [7.5])


def test_equalities_strict_and_unequal():
    (clause,) = parse_vnnlib(declare() + BOX + "(assert (= Y_0 2))").prop.clauses
    assert (clause.C.tolist(), clause.d.tolist()) == ([[1, 0], [-1, 0]], [-2, 2])
    (clause,) = parse_vnnlib(declare() + BOX + "(assert (< Y_0 2))").prop.clauses
    assert clause.strict is not None
    assert clause.strict.tolist() == [True]
    assert len(parse_vnnlib(declare() + BOX + "(assert (!= Y_0 2))").prop.clauses) == 2
    (clause,) = parse_vnnlib(declare() + BOX + "(assert (< X_0 0.5))").prop.clauses
    assert clause.upper[0] == 0.5
    assert not inside(clause, np.array([0.5, 0.0]), np.zeros(2))


@pytest.mark.parametrize(
    "number", ["0.1", "0.3", "1e-30", "0.679857769", "-0.45", ".7", "123456789.123"]
)
def test_decimals_are_rounded_outwards(number: str):
    text = f"(assert (<= X_0 {number}))(assert (>= X_1 {number}))(assert (<= Y_0 {number}))"
    (clause,) = parse_vnnlib(declare() + text).prop.clauses
    value = Fraction(number)
    for found, is_upper in (
        (clause.upper[0], True),
        (clause.lower[1], False),
        (-clause.d[0], True),
    ):
        assert Fraction(float(found)) >= value if is_upper else Fraction(float(found)) <= value
        assert abs(Fraction(float(found)) - value) <= abs(value) * Fraction(1, 2**52)


def test_gzip_is_read_whatever_the_name(tmp_path: Path):
    path = tmp_path / "prop.vnnlib"
    path.write_bytes(gzip.compress((declare() + BOX).encode()))
    assert len(read_vnnlib(path).prop.clauses) == 1


@pytest.mark.parametrize(
    "text",
    [
        "(assert (>= X_0 2))",
        "(assert (<= 3 2))",
        "(assert (and (<= Y_0 1) (>= Y_0 1.5)))",
        "(assert (<= Y_0 Y_1)) (assert (>= Y_0 (+ Y_1 0.25)))",
        "(assert (< Y_0 1)) (assert (>= Y_0 1))",
    ],
)
def test_contradictions_leave_no_clause_and_a_warning(text: str):
    query = parse_vnnlib(declare() + BOX + text)
    assert query.prop.clauses == ()
    assert "nothing can violate" in query.warnings[0]


def test_a_touching_pair_is_no_contradiction():
    text = "(assert (<= Y_0 1)) (assert (>= Y_0 1)) (assert (<= X_0 -1))"
    assert len(parse_vnnlib(declare() + BOX + text).prop.clauses) == 1


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("\n(assert (<= X_9 1))", 5, 13, "not declared"),
        ("\n(assert (<= X_0 1)", 5, 19, r"expected '\)'"),
        ("\n; note (\n  (assert (xor (<= X_0 1)))", 6, 12, "unknown operator 'xor'"),
        ("\n(assert (<= (* X_0 Y_0) 1))", 5, 14, "only linear"),
        ("\n(declare-const X_0 Real)", 5, 16, "declared twice"),
        ("\n(declare-const Z_0 Real)", 5, 16, "neither an input"),
        ("\n(declare-const X_2 Int)", 5, 20, "type 'Int'"),
        ("\n(solve)", 5, 2, "unknown command"),
        ("\nassert", 5, 1, r"expected '\('"),
        ("\n(assert (and))", 5, 13, "at least one part"),
        ("\n(vnnlib-version <3.0>)", 5, 17, "version 3.0"),
    ],
)
def test_errors_say_where(text: str, line: int, column: int, words: str):
    with pytest.raises(PropertyError, match=words) as caught:
        parse_vnnlib(declare() + text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_other_bad_input_is_named(tmp_path: Path):
    with pytest.raises(PropertyError, match="X_1 is not declared"):
        parse_vnnlib("(declare-const X_0 Real)(declare-const X_2 Real)(declare-const Y_0 Real)")
    with pytest.raises(PropertyError, match="Y_0 is not declared"):
        parse_vnnlib("(declare-const X_0 Real)")
    with pytest.raises(PropertyError, match="cannot read"):
        read_vnnlib(tmp_path / "none.vnnlib")
    (tmp_path / "binary").write_bytes(b"\x1f\x8b\x00\xff")
    with pytest.raises(PropertyError, match="cannot read"):
        read_vnnlib(tmp_path / "binary")
    deep = "(and " * 5000 + "(<= Y_0 1)" + ")" * 5000
    with pytest.raises(PropertyError, match="nested too deeply"):
        parse_vnnlib(declare() + f"(assert {deep})")
    wide = "(assert (or " + "(<= Y_0 1)" * 10 + "))"
    with pytest.raises(PropertyError, match="multiply out to 1000000"):
        parse_vnnlib(declare() + wide * 6)


def test_counts_and_missing_bounds_are_refused():
    query = parse_vnnlib(declare() + "(assert (<= X_0 1))")
    with pytest.raises(PropertyError, match="declares 2 inputs, the network has 5"):
        query.check_counts(5, 2)
    with pytest.raises(PropertyError, match="declares 2 outputs, the network has 3"):
        query.check_counts(2, 3)
    with pytest.raises(PropertyError, match="input X_0 lies in"):
        query.check_bounded()
    parse_vnnlib(declare() + BOX).check_bounded()


VERSION_2 = """
(vnnlib-version <2.0>)
(declare-network f (declare-input A Real [1,2] "image") (declare-input m float32 [])
  (declare-output B Real [1,3] "logits"))
(declare-network g (equal-to f) (declare-input C Real [1, 2]) (declare-input k float32 [])
  (declare-output E Real [1,3]))
(assert (or (<= A[0,1] 0.5) (and (>= m 1) (= C[0,1] A[0, 0])))) ; a comment
(assert (> B[0,2] (+ E[0,0] 1)))
"""


def test_version_2_networks_and_tensors():
    query = parse_vnnlib(VERSION_2)
    assert (query.n_inputs, query.n_outputs, query.version) == (6, 6, "2.0")
    f, g = query.networks
    assert [t.offset for t in (*f.inputs, *g.inputs)] == [0, 2, 3, 5]
    assert (f.inputs[0].onnx_name, f.outputs[0].onnx_name) == ("image", "logits")
    assert (f.same_as, g.same_as) == (None, "f")
    first, second = query.prop.clauses
    assert first.upper[1] == 0.5
    assert first.C.tolist() == [[0, 0, -1, 1, 0, 0]]
    assert second.lower[2] == 1
    assert second.D is not None
    assert [1, 0, 0, 0, -1, 0] in second.D.tolist()


def test_several_networks_are_not_taken_for_one():
    assert not parse_vnnlib(VERSION_2).is_plain
    assert not read_exact(VERSION_2).is_plain
    assert parse_vnnlib(declare() + BOX).is_plain
    single = "(declare-network f (declare-input A Real [2]) (declare-output B Real [1]))"
    assert parse_vnnlib(single).is_plain
    assert len(goals(single)) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("A[0,1]", "A[0,2]", "index 2"),
        ("A[0,1]", "A[1]", "1 indices"),
        ("A[0,1]", "Q[1]", "not declared"),
        ("(equal-to f)", "(equal-to h)", "not declared before"),
        ("declare-input A", "declare-inner A", "'declare-inner' is not allowed"),
        ("Real [1,2]", "int8 [1,2]", "element type 'int8'"),
        ("C Real", "A Real", "declared twice"),
        ("[1,2]", "1,2", "expected a shape"),
    ],
)
def test_version_2_errors(old: str, new: str, words: str):
    with pytest.raises(PropertyError, match=words) as caught:
        parse_vnnlib(VERSION_2.replace(old, new, 1))
    assert caught.value.line > 1


numbers = st.sampled_from(["0", "1", "-0.5", "0.25", "2", "-1.5"])
variables = st.sampled_from(["X_0", "X_1", "Y_0", "Y_1"])
terms = st.one_of(
    numbers,
    variables,
    st.builds("(* {} {})".format, numbers, variables),
    st.builds("({} {} {})".format, st.sampled_from(["+", "-"]), variables, variables),
    st.builds("(- {} {} {})".format, variables, numbers, variables),
)
atoms = st.builds(
    "({} {} {})".format, st.sampled_from(["<=", ">=", "<", ">", "=", "!="]), terms, terms
)
formulas = st.recursive(
    atoms,
    lambda inner: st.builds(
        lambda head, parts: f"({head} {' '.join(parts)})",
        st.sampled_from(["and", "or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)
values = st.sampled_from([-1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(formulas, min_size=1, max_size=3),
    st.lists(st.lists(values, min_size=4, max_size=4), min_size=8, max_size=8),
)
def test_clauses_mean_the_same_as_the_text(asserted: list[str], points: list[list[float]]):
    text = declare() + "".join(f"(assert {formula})" for formula in asserted)
    clauses = parse_vnnlib(text).prop.clauses
    closed = exact_clauses(read_exact(text))
    for point in points:
        x, y = np.array(point[:2]), np.array(point[2:])
        truth = holds(text, x, y)
        assert any(inside(clause, x, y) for clause in clauses) == truth
        if truth:  # strict rows are closed there: a superset
            value = {("x", 0): x[0], ("x", 1): x[1], ("y", 0): y[0], ("y", 1): y[1]}
            assert any(
                all(
                    sum(c * Fraction(value[v]) for v, c in row.items()) + k <= 0
                    for row, k, _ in rows
                )
                for rows in closed
            )


FOLDERS = [
    "acasxu/vnnlib",
    "mnist_fc/vnnlib",
    "oval21/vnnlib",
    "rl_benchmarks/vnnlib",
    "verivital/specs",
]


@pytest.mark.skipif(not DATA.exists(), reason="needs the vnn data (HOLDFAST_DATA)")
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_property_of_the_competition_is_read(folder: str):
    files = sorted((DATA / folder).rglob("*.vnnlib*"))
    assert files
    rng = np.random.default_rng(0)
    for number, path in enumerate(files):
        started = time.process_time()
        query = read_vnnlib(path)
        assert time.process_time() - started < 1.0
        query.check_bounded()
        assert query.prop.clauses
        assert query.is_exact
        if number % 10 == 0:  # two readings of the text agree at corners and random outputs
            clause = query.prop.clauses[-1]
            x = np.where(rng.random(query.n_inputs) < 0.5, clause.lower, clause.upper)
            x = np.clip(x.astype(np.float32).astype(float), clause.lower, clause.upper)
            for y in rng.normal(size=(3, query.n_outputs)):
                assert any(inside(c, x, y) for c in query.prop.clauses) >= holds(query.text, x, y)


@pytest.mark.skipif(not DATA.exists(), reason="needs the vnn data (HOLDFAST_DATA)")
def test_instances_name_existing_properties():
    for name in ("acasxu", "rl_benchmarks"):
        with (DATA / name / "instances.csv").open() as file:
            assert all((DATA / name / row[1]).exists() for row in csv.reader(file))
