"""Proofs about several networks: written, accepted, and refused when anything is not as claimed."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from holdfast.certificates import check, load_proof
from holdfast.certificates.emit import write_proof
from holdfast.certificates.exact import read_exact
from holdfast.certificates.several import assigned, joined_steps
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
