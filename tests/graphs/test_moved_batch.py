"""Networks that move the batch axis for a while, as attention with joined projections does."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from holdfast.graphs.errors import GraphError
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.graphs.torch_capture import capture


class Joined(nn.Module):
    """Attention as in timm: queries, keys and values of all heads from one projection."""

    def __init__(self, take):
        super().__init__()
        self.qkv, self.out, self.take = nn.Linear(6, 18), nn.Linear(6, 2), take

    def forward(self, x):
        n, steps, width = x.shape
        qkv = self.qkv(x).reshape(n, steps, 3, 2, 3).permute(2, 0, 3, 1, 4)
        q, k, v = self.take(qkv)
        share = torch.softmax(q @ k.transpose(-2, -1) / 3**0.5, -1)
        return self.out((share @ v).transpose(1, 2).reshape(n, steps, width)).flatten(1)


TAKE = {
    "unbind": lambda z: z.unbind(0),
    "index": lambda z: (z[0], z[1], z[2]),
    "chunk": lambda z: [part.squeeze(0) for part in z.contiguous().chunk(3)],
    "back": lambda z: z.permute(1, 0, 2, 3, 4).unbind(1),
    "slice": lambda z: [z[i : i + 1].transpose(0, 1)[:, 0] for i in range(3)],
}


@pytest.mark.parametrize("name", TAKE)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_values_are_the_modules(name, steps):
    torch.manual_seed(0)
    module, x = Joined(TAKE[name]).eval(), torch.randn(5, steps, 6)
    graph = capture(module, x).to(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


class Mixing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 4)

    def forward(self, x):
        return self.function(x.permute(1, 0, 2), self.layer)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, layer: layer(z).permute(1, 0, 2), "has the batch as axis 1; permute it"),
        (lambda z, _: (z + 1).permute(1, 0, 2), "'add' at .* batch as axis 1"),
        (lambda z, _: torch.cat([z[1], torch.cat([z, z], 2)[0]], 1), "batch as axis 1"),
        (lambda z, _: z.flip(1).permute(1, 0, 2), "mixes the batch axis"),
    ],
)
def test_what_needs_the_batch_in_front_says_so(function, message):
    with pytest.raises(GraphError, match=message):
        capture(Mixing(function).eval(), torch.rand(2, 3, 4))


def onnx_model(nodes, shape, opset=14, stored=()):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(v, k) for k, v in stored]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize("how", ["Gather", "Split", "Transpose"])
def test_onnx_moves_it_alike(how):
    onnxruntime = pytest.importorskip("onnxruntime")
    node = helper.make_node
    nodes = [node("Transpose", ["x"], ["t"], perm=[2, 0, 1, 3])]
    stored = [("axes", np.array([0])), ("one", np.array(1)), ("first", np.array([1]))]
    if how == "Gather":
        nodes += [node("Gather", ["t", "one"], ["y"], axis=0)]
    elif how == "Split":
        nodes += [node("Split", ["t"], ["a", "b", "c"], axis=0)]
        nodes += [node("Squeeze", ["b", "axes"], ["y"])]
    else:
        nodes += [
            node("Identity", ["t"], ["i"]),
            node("Transpose", ["i"], ["u"], perm=[1, 3, 2, 0]),
        ]
        nodes += [node("Flatten", ["u"], ["y"])]
    model = onnx_model(nodes, (2, 3, 4), stored=stored)
    model.ir_version = 8
    x = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = session.run(["y"], {"x": x})[0]
    found = read_onnx(model).to(torch.float32)(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy().reshape(wanted.shape), wanted)


def test_a_shape_read_on_the_way_counts_one_sample():
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
        node("Shape", ["t"], ["s"]),
        node("Gather", ["s", "index"], ["length"], axis=0),
        node("Gather", ["t", "index"], ["first"], axis=0),
        node("Cast", ["length"], ["number"], to=TensorProto.FLOAT),
        node("Mul", ["first", "number"], ["y"]),
    ]
    graph = read_onnx(onnx_model(nodes, (2, 3), stored=[("index", np.array(0))]))
    x = torch.rand(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(graph.to(torch.float64)(x), 3 * x[:, :, 0])
