"""Proofs about several networks: written, accepted, and refused when anything is not as claimed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from proof_tools import save_onnx

from holdfast.certificates import check, load_proof
from holdfast.certificates.emit import write_proof
from holdfast.certificates.exact import read_exact
from holdfast.certificates.network import append_network
from holdfast.certificates.several import _merged, assigned, joined_steps
from holdfast.certificates.steps import Step
from holdfast.certificates.substitution import Substitution
from holdfast.properties.instances import decide
from several import SAME_INPUTS, WEIGHTS, apart, box, declare, near, save_network

TEXTS = {
    "equivalence": declare("(isomorphic-to f)") + box("X_f") + SAME_INPUTS + apart(0.3),
    "robustness": declare() + box("X_f") + box("X_g") + near(0.02) + apart(1.5),
    "apart": declare() + box("X_f", 0, 0.25) + box("X_g", 0, 0.25) + apart(6.0),
    "inside": declare(hidden='(declare-hidden H Real [1,8] "hidden")')
    + box("X_f")
    + SAME_INPUTS
    + "(assert (>= (- H[0,0] Y_g[0,0]) 12))",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every text with its proof; the networks differ in one weight by a hundredth."""
    folder = tmp_path_factory.mktemp("several")
    second = WEIGHTS[1].copy()
    second[3, 1] += 0.01
    files = {"f": save_network(folder / "f.onnx")}
    files["g"] = save_network(folder / "g.onnx", WEIGHTS[0], second)
    for name, text in TEXTS.items():
        prop = folder / f"{name}.vnnlib"
        prop.write_text(text)
        _, verdict = decide(files, prop, 30.0, certificate=True)
        assert verdict.status == "unsat", name
        write_proof(verdict, files, prop, folder / f"{name}.zip")
    return folder, files


@pytest.mark.parametrize("name", TEXTS)
def test_proofs_are_accepted(made, name: str):
    folder, files = made
    result = check(folder / f"{name}.zip", files, folder / f"{name}.vnnlib")
    assert result.accepted, result.reason
    assert result.n_leaves > 0


def refused(made, proof, text: str | None = None, files=None) -> str:
    folder, own = made
    prop = folder / "equivalence.vnnlib"
    if text is not None:
        prop = folder / "other.vnnlib"
        prop.write_text(text)
        proof = dataclasses.replace(
            proof, property_sha256=hashlib.sha256(text.encode()).hexdigest()
        )
    result = check(proof, files or own, prop)
    assert not result.accepted
    return result.reason


def test_a_substitution_must_follow_from_the_text(made):
    folder, _ = made
    proof = load_proof(folder / "equivalence.zip")
    assert proof.substitution is not None
    assert proof.substitution.base.tolist() == [0, 1, 0, 1]
    text = TEXTS["equivalence"]
    weaker = text.replace("(== X_f[0,1] X_g[0,1])", "(<= X_f[0,1] X_g[0,1])")
    assert "inputs 1 and 3 are not equal" in refused(made, proof, weaker + box("X_g"))
    nearly = text.replace("(== X_f[0,1] X_g[0,1])", "(== (+ X_f[0,1] 0.001) X_g[0,1])")
    assert "inputs 1 and 3 are not equal" in refused(made, proof, nearly + box("X_g"))


@pytest.mark.parametrize("relation", ["(== (+ X_f[0,1] X_g[0,1]) 0)",
                                      "(== (- (* 2 X_f[0,1]) X_g[0,1]) 0)"])  # fmt: skip
def test_other_relations_are_no_equality(made, relation: str):
    proof = load_proof(made[0] / "equivalence.zip")
    text = TEXTS["equivalence"].replace("(== X_f[0,1] X_g[0,1])", relation)
    assert "inputs 1 and 3 are not equal" in refused(made, proof, text + box("X_g"))


@given(st.fractions(-3, 3), st.fractions(-3, 3), st.fractions(-3, 3))
def test_the_box_of_free_inputs_is_rounded_outwards(least, greatest, edge):
    """``x0 in [-1, 1], x1 = x0 + z in [least, greatest] + x0`` and ``z <= x0 + edge``."""
    rows = [
        ({("x", 1): Fraction(1)}, -greatest, False),
        ({("x", 1): Fraction(-1)}, least, False),
        ({("x", 1): Fraction(3), ("x", 0): Fraction(-1)}, -edge, False),
    ]
    claim = Substitution(np.array([0, 0]), np.array([-1, 1]))
    lower, upper = claim.box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), rows)
    assert Fraction(float(lower[1])) <= least
    exact = min(greatest, (1 + edge) / 3)
    assert Fraction(float(upper[1])) >= exact
    assert math.nextafter(math.nextafter(float(upper[1]), -math.inf), -math.inf) < exact


@pytest.mark.parametrize(
    ("base", "shift", "words"),
    [
        ([0, 0, 0, 0], [-1, -1, -1, -1], "inputs 0 and 1 are not equal"),
        ([0, 1, 0], [-1, -1, -1], "not about the inputs"),
        ([0, 1, 0, -1], [-1, -1, -1, -1], "do not exist"),
        ([0, 1, 2, 1], [-1, -1, 3, -1], "no input tells"),
        ([0, 1, 0, 1], [-1, -1, 1, -1], "no input tells"),
        ([0, 1, 0, 1], [-1, -1, 2, 2], "for several differences"),
        ([0, 2, 0, 2], [-1, -1, -1, -1], "or none"),
    ],
)
def test_tampered_substitutions_are_refused(made, base, shift, words: str):
    proof = load_proof(made[0] / "equivalence.zip")
    assert proof.substitution is not None
    other = dataclasses.replace(proof.substitution, base=np.array(base), shift=np.array(shift))
    assert words in refused(made, dataclasses.replace(proof, substitution=other))


def test_other_files_and_other_claims_are_refused(made):
    folder, files = made
    proof = load_proof(folder / "equivalence.zip")
    swapped = {"f": files["g"], "g": files["f"]}
    assert "another network" in refused(made, proof, files=swapped)
    assert "a file is needed for each" in refused(made, proof, files=files["f"])
    assert "not excluded" in refused(made, proof, TEXTS["equivalence"].replace("0.3", "0.001"))
    assert refused(made, dataclasses.replace(proof, substitution=None))


def test_steps_compute_what_the_networks_do(made):
    _, files = made
    query = read_exact(TEXTS["inside"])
    steps = joined_steps(query, assigned(query, files), None)
    x = np.array([0.3, -0.7, 0.9, 0.1])
    values = [x]
    for step in steps[1:]:
        sources = [values[at] for at in step.sources]
        if step.kind == "affine":
            values.append(step.weight @ sources[0] + step.bias)
        else:
            values.append(np.maximum(sources[0], 0) if step.kind == "relu" else sum(sources))
    first, second = (w.astype(np.float32).astype(float) for w in WEIGHTS)
    hidden = np.maximum(x[:2] @ first, 0)
    third = second.copy()
    third[3, 1] = np.float32(WEIGHTS[1][3, 1] + 0.01)
    expected = [hidden, hidden @ second, np.maximum(x[2:] @ first, 0) @ third]
    np.testing.assert_allclose(values[-1], np.concatenate(expected), rtol=1e-12)


def test_only_equal_steps_are_merged():
    weight = np.eye(2)
    steps = [Step("input", (), 2)]
    steps += [Step("affine", (0,), 2, weight, np.full(2, bias)) for bias in (0.0, 1.0, 1.0)]
    steps += [Step("affine", (0,), 2, 2 * weight, np.ones(2)), Step("relu", (0,), 2)]
    found, ends = _merged(steps, [1, 2, 3, 4, 5])
    assert ends == [1, 2, 2, 3, 4]
    assert [None if s.bias is None else s.bias[0] for s in found] == [None, 0.0, 1.0, 1.0, None]


def test_an_inner_value_is_the_one_before_its_bias(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["before"]),
        helper.make_node("Add", ["before", "b"], ["y"]),
    ]
    weights = {"w": WEIGHTS[0].astype(np.float32), "b": np.ones(8, np.float32)}
    file = save_onnx(tmp_path / "n.onnx", nodes, weights, (1, 2), (1, 8))
    found = [Step("input", (), 2)]
    ends = append_network(found, file, [0], ["before"])
    biases = [np.zeros(8) if found[at].bias is None else found[at].bias for at in ends]
    np.testing.assert_array_equal(biases, [np.zeros(8), np.ones(8)])
