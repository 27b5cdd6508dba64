"""Small networks as ONNX files, properties about them, and proofs made with the checker alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from holdfast.certificates.check import Derivation
from holdfast.certificates.clauses import goals
from holdfast.certificates.network import read_network
from holdfast.certificates.proof import Proof, digest
from holdfast.certificates.trees import Branch, complete, flatten


def save_onnx(path: Path, nodes: list, weights: dict, shape: tuple, out: tuple) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def mlp(path: Path, sizes: tuple[int, ...] = (3, 8, 8, 2), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = (rng.normal(size=(m, n)) * np.sqrt(2 / n)).astype(np.float32)
        weights[f"b{i}"] = (rng.normal(size=m) * 0.3).astype(np.float32)
        last = i == len(sizes) - 2
        name = "y" if last else f"z{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [name], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [name], [f"a{i}"]))
        value = f"a{i}"
    return save_onnx(path, nodes, weights, (1, sizes[0]), (1, sizes[-1]))


def box_property(path: Path, lower: list, upper: list, asserted: str, n_outputs: int = 2) -> Path:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(n_outputs)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {float(low)!r}))", f"(assert (<= X_{i} {float(high)!r}))"]
    path.write_text("\n".join([*lines, asserted]))
    return path


def prove(network: Path, prop: Path, cut_neurons: bool = False, max_leaves: int = 4000) -> Proof:
    """A proof by cutting until the checker's own bounds suffice."""
    steps, trees = read_network(network), []
    for goal in goals(prop.read_text()):
        root = Branch((), np.full(len(goal.constants), 1 / len(goal.constants)))
        derivation = Derivation(steps, goal)
        if cut_neurons:
            root.divide(0, 0, 0.0)
        complete(root, derivation, max_leaves)
        trees.append(flatten(root))
    return Proof(digest(network.read_bytes()), digest(prop.read_bytes()), tuple(trees))


def outputs(network: Path, x: np.ndarray) -> np.ndarray:
    """Outputs in float64 by a second, plain way of running a chain of Gemm and Relu: ``(n, m)``."""
    model = onnx.load(network)
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            x = x @ weights[node.input[1]].T + weights[node.input[2]]
        else:
            x = np.maximum(x, 0)
    return x
