"""Small ONNX files and VNN-LIB 2.0 texts of several networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.random.default_rng(3).normal(size=(2, 8)), np.random.default_rng(4).normal(size=(8, 2))


def save_network(path: Path, first=WEIGHTS[0], second=WEIGHTS[1], opset: int = 13) -> Path:
    """``relu(x @ first) @ second`` from ``(1, 2)`` to ``(1, m)``; the ReLU is called "hidden"."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(first)])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", second.shape[1]])]
    return _save(path, nodes, inputs, outputs, {"a": first, "b": second}, opset)


def save_two_by_two(path: Path) -> Path:
    """``s = u + relu(v)`` and ``d = u - v`` of scalars u and v in shape (1, 1)."""
    nodes = [
        helper.make_node("Relu", ["v"], ["r"]),
        helper.make_node("Add", ["u", "r"], ["s"]),
        helper.make_node("Sub", ["u", "v"], ["d"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, (1, 1)) for name in "uv"]
    outputs = [value(name, TensorProto.FLOAT, (1, 1)) for name in "sd"]
    return _save(path, nodes, inputs, outputs, {}, 13)


def _save(path: Path, nodes, inputs, outputs, weights, opset: int) -> Path:
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    if opset < 9:  # initialisers were inputs as well
        inputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, w.shape) for n, w in weights.items()
        ]
    graph = helper.make_graph(nodes, "net", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3 if opset < 9 else 8
    onnx.save(model, path)
    return path


def declare(relation: str = "", outputs: int = 2, hidden: str = "") -> str:
    """Networks f and g from (1, 2) to (1, outputs)."""
    lines = [
        f"(declare-network {name} {before}(declare-input X_{name} Real [1,2]) "
        f"{inside}(declare-output Y_{name} Real [1,{outputs}]))"
        for name, before, inside in (("f", "", f"{hidden} "), ("g", f"{relation} ", ""))
    ]
    return "\n".join(["(vnnlib-version <2.0>)", *lines, ""])


def box(name: str, lower: float = -1, upper: float = 1) -> str:
    """Limits of both inputs."""
    return "".join(
        f"(assert (and (>= {name}[0,{i}] {lower}) (<= {name}[0,{i}] {upper})))\n" for i in (0, 1)
    )


SAME_INPUTS = "".join(f"(assert (== X_f[0,{i}] X_g[0,{i}]))\n" for i in (0, 1))


def apart(limit: float, outputs: int = 2) -> str:
    """An output of g differs from f's by at least ``limit``."""
    parts = [
        f"(>= (- Y_g[0,{j}] Y_f[0,{j}]) {limit}) (<= (- Y_g[0,{j}] Y_f[0,{j}]) -{limit})"
        for j in range(outputs)
    ]
    return f"(assert (or {' '.join(parts)}))\n"


def near(limit: float) -> str:
    """Inputs of g differ from f's by at most ``limit``."""
    return "".join(
        f"(assert (and (<= (- X_g[0,{i}] X_f[0,{i}]) {limit}) "
        f"(<= (- X_f[0,{i}] X_g[0,{i}]) {limit})))\n"
        for i in (0, 1)
    )
