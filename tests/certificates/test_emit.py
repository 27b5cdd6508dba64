"""What the verifier calls unsat becomes a proof that the independent checker accepts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from proof_tools import box_property, mlp, outputs

from holdfast.certificates import CertificateError, check, save_proof
from holdfast.certificates.emit import build_proof, write_proof
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.properties.instances import decide
from holdfast.verifiers.problem import Certificate

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "vnn"


def certified(network: Path, prop: Path) -> Certificate:
    _, verdict = decide(network, prop, 60.0, certificate=True)
    assert verdict.status == "unsat"
    assert verdict.certificate is not None
    return verdict.certificate


def accepted(network: Path, prop: Path, path: Path) -> int:
    proof = build_proof(certified(network, prop), read_onnx(network, fold=False), network, prop)
    save_proof(proof, path)
    result = check(path, network, prop)
    assert result.accepted, result.reason
    return result.n_leaves


@pytest.mark.parametrize(
    ("n_inputs", "width", "seed"), [(3, 1.0, 0), (3, 1.0, 1), (40, 0.05, 0), (40, 0.05, 1)]
)
def test_cuts_of_inputs_and_of_neurons(tmp_path: Path, n_inputs: int, width: float, seed: int):
    network = mlp(tmp_path / "n.onnx", (n_inputs, 16, 16, 3), seed)
    x = np.random.default_rng(seed).uniform(-width, width, (20000, n_inputs))
    y = outputs(network, x)
    limits = [float((y[:, 0] - y[:, k]).max()) + 0.25 for k in (1, 2)]
    asserted = "(assert (or (>= Y_0 (+ Y_1 {})) (>= Y_0 (+ Y_2 {}))))".format(*limits)
    prop = box_property(tmp_path / "p.vnnlib", [-width] * n_inputs, [width] * n_inputs, asserted, 3)
    assert accepted(network, prop, tmp_path / "a.proof") > 4


def test_a_missing_leaf_is_noticed(tmp_path: Path):
    network = mlp(tmp_path / "n.onnx", (3, 16, 16, 2), 0)
    y = outputs(network, np.random.default_rng(0).uniform(-1, 1, (20000, 3)))
    limit = float((y[:, 0] - y[:, 1]).max()) + 0.15
    asserted = f"(assert (>= Y_0 (+ Y_1 {limit!r})))"
    prop = box_property(tmp_path / "p.vnnlib", [-1] * 3, [1] * 3, asserted)
    whole, graph = certified(network, prop), read_onnx(network, fold=False)
    assert len(whole.leaves) > 3
    part = dataclasses.replace(whole, leaves=whole.leaves[:1] + whole.leaves[2:])
    with pytest.raises(CertificateError, match="leaves of the certificate"):
        build_proof(part, graph, network, prop)
    with pytest.raises(CertificateError, match="no leaf for clause 0"):
        build_proof(dataclasses.replace(whole, leaves=()), graph, network, prop)


def test_only_unsat_is_written(tmp_path: Path):
    network = mlp(tmp_path / "n.onnx", (3, 8, 2))
    asserted = "(assert (>= Y_0 {}))"
    for limit, status in ((-99, "sat"), (99, "unsat")):
        path = tmp_path / f"{status}.vnnlib"
        prop = box_property(path, [-1] * 3, [1] * 3, asserted.format(limit))
        _, verdict = decide(network, prop, 60.0, certificate=True)
        assert verdict.status == status
        if status == "sat":
            with pytest.raises(CertificateError, match="'sat' has no certificate"):
                write_proof(verdict, network, prop, tmp_path / "a.proof")
        else:
            write_proof(verdict, network, prop, tmp_path / "a.proof")
            assert check(tmp_path / "a.proof", network, prop).accepted


@pytest.mark.skipif(not DATA.exists(), reason="needs the vnn data (HOLDFAST_DATA)")
@pytest.mark.parametrize(
    ("network", "prop"),
    [
        ("acasxu/onnx/ACASXU_run2a_1_9_batch_2000.onnx", "acasxu/vnnlib/prop_1.vnnlib"),
        ("acasxu/onnx/ACASXU_run2a_4_5_batch_2000.onnx", "acasxu/vnnlib/prop_10.vnnlib"),
        ("rl_benchmarks/onnx/cartpole.onnx", "rl_benchmarks/vnnlib/cartpole_case_unsafe_0.vnnlib"),
        ("mnist_fc/onnx/mnist-net_256x2.onnx", "mnist_fc/vnnlib/prop_4_0.03.vnnlib"),
    ],
)
def test_instances_of_the_competition(network: str, prop: str, tmp_path: Path):
    accepted(DATA / network, DATA / prop, tmp_path / "a.proof")
