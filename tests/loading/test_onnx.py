"""ONNX files give the scores that the network's mathematics says."""

import sys

import numpy as np
import pytest
import torch

from holdfast.errors import ModelError, PrerequisiteError
from holdfast.loading import load_model
from holdfast.model import Model
from holdfast.threat import Access

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 3)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)


def write(path, rows="n", kind=TensorProto.FLOAT, shape=(2, 3), outputs=1):
    """softplus-free affine network: flatten(x) @ W + b."""
    dtype = np.float64 if kind == TensorProto.DOUBLE else np.float32
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
    ]
    made = [helper.make_tensor_value_info("scores", kind, [rows, 3])]
    if outputs == 2:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0))
        made.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [rows]))
    if outputs == 3:
        nodes.append(helper.make_node("Relu", ["scores"], ["more"]))
        made.append(helper.make_tensor_value_info("more", kind, [rows, 3]))
    weights = [numpy_helper.from_array(WEIGHT.astype(dtype), "w")]
    weights.append(numpy_helper.from_array(BIAS.astype(dtype), "b"))
    given = [helper.make_tensor_value_info("x", kind, [rows, *shape])]
    graph = helper.make_graph(nodes, "net", given, made, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize("rows", ["n", 1, 4])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_scores_for_any_number_of_rows(tmp_path, rows, kind):
    loaded = load_model(write(tmp_path / "net.onnx", rows, kind))
    assert loaded.access is Access.SCORES
    for n in (1, 4, 7):
        x = torch.rand(n, 2, 3)
        expected = x.flatten(1) @ torch.from_numpy(WEIGHT) + torch.from_numpy(BIAS)
        out = loaded.f(x)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_through_the_model(tmp_path):
    loaded = load_model(write(tmp_path / "net.onnx"))
    model = Model(loaded.f, access=loaded.access)
    x = torch.rand(3, 2, 3)
    with model.session():
        assert model.recognise(x).n_classes == 3
        torch.testing.assert_close(model.logits(x), loaded.f(x))


def test_the_scores_are_found_beside_labels(tmp_path):
    x = torch.rand(2, 2, 3)
    alone = load_model(write(tmp_path / "one.onnx")).f(x)
    assert torch.equal(load_model(write(tmp_path / "two.onnx", outputs=2)).f(x), alone)


def test_two_matrices_of_scores_are_refused(tmp_path):
    with pytest.raises(ModelError, match="needs one tensor of scores"):
        load_model(write(tmp_path / "three.onnx", outputs=3))


def test_a_wrong_shape_is_told(tmp_path):
    f = load_model(write(tmp_path / "net.onnx")).f
    with pytest.raises(ModelError, match=r"takes inputs of shape \(2, 3\).*have shape \(3, 2\)"):
        f(torch.rand(1, 3, 2))


def test_a_torn_file_is_told(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"torn")
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        load_model(str(tmp_path / "net.onnx"))


def test_without_onnxruntime_the_install_line_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PrerequisiteError, match=r'pip install "holdfast\[onnx\]"'):
        load_model(path)
