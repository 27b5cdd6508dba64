import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from holdfast.graphs.builder import known
from holdfast.graphs.errors import GraphError, UnsupportedOperatorError
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.graphs.torch_capture import capture

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[2] / "../shared/data"))
VNN = ("acasxu", "mnist_fc", "oval21", "rl_benchmarks", "verivital")


def model(nodes, shape=(1, 4), constants=(), opset=13, out_shape=None):
    """An ONNX model from x to y."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)]
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    built.ir_version = 8
    return built


def compare(built, shape, fold=True):
    session = onnxruntime.InferenceSession(
        built.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    graph = read_onnx(built, fold=fold).to(torch.float32)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = session.run(None, {session.get_inputs()[0].name: x})[0]
    found = graph(torch.from_numpy(x).reshape(1, *graph.input_shape))
    np.testing.assert_allclose(found.numpy().ravel(), expected.ravel(), atol=1e-4, rtol=1e-4)
    return graph


@pytest.mark.parametrize("benchmark", VNN)
def test_competition_networks_run_like_onnxruntime(benchmark):
    files = sorted((DATA / "vnn" / benchmark).rglob("*.onnx"))[:3]
    if not files:
        pytest.skip(f"no networks under {DATA}; set HOLDFAST_DATA")
    for file in files:
        built = onnx.load(file)
        info = next(
            i for i in built.graph.input if i.name not in {t.name for t in built.graph.initializer}
        )
        shape = [max(d.dim_value, 1) for d in info.type.tensor_type.shape.dim]
        for fold in (True, False):
            compare(built, shape, fold)


NODES = {
    "gemm": (
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        (1, 4),
        {"w": (4, 3), "b": (3,)},
    ),
    "conv_same": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        (1, 2, 5, 6),
        {"w": (3, 2, 3, 3)},
    ),
    "conv_uneven": (
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 0])],
        (1, 2, 5, 6),
        {"w": (3, 2, 3, 3)},
    ),
    "conv_transpose": (
        [
            helper.make_node(
                "ConvTranspose",
                ["x", "w"],
                ["y"],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                output_padding=[1, 1],
            )
        ],
        (1, 2, 3, 3),
        {"w": (2, 3, 3, 3)},
    ),
    "max_pool": (
        [
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=[2, 3], strides=[2, 2], pads=[1, 0, 0, 1]
            )
        ],
        (1, 2, 5, 6),
        {},
    ),
    "avg_pool": (
        [
            helper.make_node(
                "AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1]
            )
        ],
        (1, 2, 4, 4),
        {},
    ),
    "pad_reflect": (
        [helper.make_node("Pad", ["x", "p"], ["y"], mode="reflect")],
        (1, 1, 4, 4),
        {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])},
    ),
    "reshape_shape": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"]),
            helper.make_node("Unsqueeze", ["n", "axis"], ["m"]),
            helper.make_node("Concat", ["m", "rest"], ["t"], axis=0),
            helper.make_node("Reshape", ["x", "t"], ["y"]),
        ],
        (1, 2, 6),
        {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])},
    ),
    "slice_back": (
        [helper.make_node("Slice", ["x", "a", "e", "i", "s"], ["y"])],
        (1, 6),
        {"a": np.array([5]), "e": np.array([-(2**31)]), "i": np.array([1]), "s": np.array([-2])},
    ),
    "split_concat": (
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=1),
            helper.make_node("Concat", ["b", "a", "a"], ["y"], axis=1),
        ],
        (1, 6),
        {},
    ),
    "softmax": ([helper.make_node("Softmax", ["x"], ["y"])], (1, 5), {}),
    "reduce": ([helper.make_node("ReduceMean", ["x"], ["y"], axes=[2], keepdims=0)], (1, 3, 4), {}),
    "clip_div": (
        [
            helper.make_node("Clip", ["x", "lo", "hi"], ["c"]),
            helper.make_node("Div", ["c", "w"], ["y"]),
        ],
        (1, 4),
        {"lo": np.float32(-0.5), "hi": np.float32(0.5), "w": (4,)},
    ),
    "constant_minus": ([helper.make_node("Sub", ["w", "x"], ["y"])], (1, 4), {"w": (1, 4)}),
    "resize": (
        [
            helper.make_node(
                "Resize",
                ["x", "", "scales"],
                ["y"],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
        ],
        (1, 1, 2, 3),
        {"scales": np.array([1, 1, 2, 3], np.float32)},
    ),
    "shrink, a function of the standard": (
        [helper.make_node("Shrink", ["x"], ["y"], lambd=0.4, bias=0.1)],
        (1, 6),
        {},
    ),
    "softsign and squares": (
        [
            helper.make_node("Softsign", ["x"], ["a"]),
            helper.make_node("ReduceSumSquare", ["a"], ["b"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["a", "b"], ["y"]),
        ],
        (1, 6),
        {},
    ),
    "where greater": (
        [
            helper.make_node("Greater", ["x", "w"], ["a"]),
            helper.make_node("LessOrEqual", ["x", "v"], ["b"]),
            helper.make_node("Or", ["a", "b"], ["c"]),
            helper.make_node("Where", ["c", "x", "w"], ["y"]),
        ],
        (1, 6),
        {"w": (1, 6), "v": (1, 6)},
    ),
    "triangle": ([helper.make_node("Trilu", ["x"], ["y"], upper=0)], (1, 3, 4), {}),
    "einsum": (
        [helper.make_node("Einsum", ["x", "w"], ["y"], equation="nij,jk->nik")],
        (1, 2, 3),
        {"w": (3, 4)},
    ),
    "space to depth": (
        [helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)],
        (1, 2, 4, 6),
        {},
    ),
    "running sum, norms": (
        [
            helper.make_node("CumSum", ["x", "axis"], ["a"]),
            helper.make_node("ReduceL2", ["a"], ["b"], axes=[1], keepdims=1),
            helper.make_node("ReduceL1", ["a"], ["c"], axes=[1], keepdims=1),
            helper.make_node("ReduceProd", ["x"], ["d"], axes=[1], keepdims=1),
            helper.make_node("Concat", ["a", "b", "c", "d"], ["y"], axis=1),
        ],
        (1, 4),
        {"axis": np.array(1)},
    ),
    "average to the end": (
        [
            helper.make_node(
                "AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1
            )
        ],
        (1, 2, 6, 6),
        {},
    ),
    "max_of_three": (
        [helper.make_node("Max", ["x", "w", "v"], ["y"])],
        (1, 4),
        {"w": (4,), "v": (1, 4)},
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_nodes_run_like_onnxruntime(name):
    nodes, shape, constants = NODES[name]
    rng = np.random.default_rng(1)
    stored = [
        (n, rng.normal(size=v).astype(np.float32) if isinstance(v, tuple) else v)
        for n, v in constants.items()
    ]
    compare(model(nodes, shape, stored, opset=14), shape)


def test_errors_name_the_operator_and_its_place():
    built = model([helper.make_node("Det", ["x"], ["y"], name="odd_one")], (1, 3, 3))
    with pytest.raises(UnsupportedOperatorError, match="'Det' at 'odd_one'"):
        read_onnx(built)
    weight = np.full((4, 2), np.nan, np.float32)
    with pytest.raises(GraphError, match="'w' has values that are not finite"):
        read_onnx(model([helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 4), [("w", weight)]))
    with pytest.raises(GraphError, match="no such file"):
        read_onnx("no_such_file.onnx")
    with pytest.raises(GraphError, match="batch axis"):
        read_onnx(model([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], (1, 4)))


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(GraphError, match="not a readable ONNX model"):
        read_onnx(path)


def test_writes_to_arguments_are_respected():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x * 2
            torch.relu_(y)
            return y + x

    x = torch.randn(3, 4)
    torch.testing.assert_close(capture(InPlace(), x)(x), InPlace()(x))


def test_capture_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    capture(module, torch.randn(2, 3))
    assert all(m.training for m in module.modules())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_folding_tells_whether_it_rounded():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    folded, plain = capture(module, x), capture(module, x, fold=False)
    assert len(folded.nodes) < len(plain.nodes)
    assert (folded.exact, plain.exact) == (False, True)
    torch.testing.assert_close(folded.to(torch.float32)(x), module(x))


def test_every_operator_file_registers_something():
    assert {"Gemm", "Conv", "Relu", "Softmax"} <= known("onnx").keys()
    assert {"linear", "convolution", "relu", "gelu"} <= known("aten").keys()
