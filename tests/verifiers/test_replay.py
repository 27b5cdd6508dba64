"""Counterexamples of networks in other types than float32, and networks that nothing can run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from holdfast.graphs.errors import GraphError
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.replay import inside
from holdfast.verifiers.verify import verify

FIRST = np.array([[1.0, -2.0, 0.5], [0.25, 1.5, -1.0]])
LAST = np.array([[1.0], [-1.0], [3.0]])


def save(path: Path, kind: int, last: np.ndarray = LAST) -> Path:
    """``relu(x @ FIRST) @ last`` with values of an ONNX type."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    weights = [
        helper.make_tensor(name, kind, w.shape, w.ravel())
        for name, w in (("a", FIRST), ("b", last))
    ]
    ends = ([helper.make_tensor_value_info(name, kind, shape)]
            for name, shape in (("x", (1, 2)), ("y", (1, 1))))  # fmt: skip
    graph = helper.make_graph(nodes, "net", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def at_least(limit: float, lower: float = 0.1, upper: float = 0.7) -> Property:
    """Violated where the output is at least the limit."""
    box = np.full(2, lower), np.full(2, upper)
    return Property((Clause(*box, np.array([[-1.0]]), np.array([limit])),))


@pytest.mark.parametrize(
    ("kind", "element"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)]
)
def test_counterexamples_are_what_the_network_takes(tmp_path: Path, kind: int, element: type):
    network = save(tmp_path / "n.onnx", kind)
    found = verify(network, at_least(0.5), timeout_s=20).counterexample
    assert found is not None
    assert (found.x.astype(element) == found.x).all()
    assert (found.x >= 0.1).all()
    assert (found.x <= 0.7).all()
    session = onnxruntime.InferenceSession(str(network))
    (y,) = session.run(None, {"x": found.x.astype(element)[None]})
    assert (y.ravel() == found.y).all()
    assert y.ravel()[0] >= 0.5


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_proofs_need_no_runtime(tmp_path: Path, kind: int):
    assert verify(save(tmp_path / "n.onnx", kind), at_least(9.0), timeout_s=20).status == "unsat"


def test_a_network_that_onnxruntime_cannot_run_has_no_counterexample(tmp_path: Path):
    network = save(tmp_path / "n.onnx", TensorProto.BFLOAT16)
    with pytest.raises(GraphError, match=r"onnxruntime, which replays .* cannot run .*n\.onnx"):
        verify(network, at_least(0.1), timeout_s=20)


def test_outputs_of_float64_are_judged_as_they_are(tmp_path: Path):
    """At the only input, (1, 1), the output is less than 1 by what no float32 can tell."""
    network = save(
        tmp_path / "n.onnx", TensorProto.DOUBLE, np.array([[(1 - 1e-12) / 1.25], [0], [0]])
    )
    assert verify(network, at_least(1.0, 1.0, 1.0), timeout_s=5).status == "unsat"
    assert verify(network, at_least(1.0 - 2e-12, 1.0, 1.0), timeout_s=5).status == "sat"
    verdict = verify(network, at_least(1.0, 0.5, 1.0), timeout_s=1)
    assert verdict.status != "sat"


@given(st.floats(-8e4, 8e4), st.floats(0, 10), st.floats(0, 1))
def test_points_of_float16_lie_in_the_box_wherever_it_holds_any(lower, width, share):
    low, high = np.array([lower]), np.array([lower + width])
    x, rounded = inside(low + share * width, low, high, np.float16)
    values = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    values = np.concatenate([values, -values])
    holds_any = bool(((values >= low) & (values <= high)).any())
    assert rounded == int(not holds_any)
    if holds_any:
        assert low[0] <= x[0] <= high[0]
        assert x[0] in values
