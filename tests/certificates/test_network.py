"""The checker's own reading of ONNX files against onnxruntime."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from proof_tools import save_onnx

from holdfast.certificates import CertificateError
from holdfast.certificates.network import read_network
from holdfast.certificates.steps import Step

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "vnn"
node = helper.make_node


def run(steps: tuple[Step, ...], x: np.ndarray) -> np.ndarray:
    values = [x]
    for step in steps[1:]:
        first, *others = (values[i] for i in step.sources)
        if step.kind == "affine":
            values.append(np.asarray(step.weight @ first + step.bias))
        else:
            values.append(np.maximum(first, 0) if step.kind == "relu" else first + others[0])
    return values[-1]


def assert_same(network: Path, shape: tuple[int, ...], tolerance: float = 1e-5) -> None:
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    steps = read_network(network)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        (expected,) = session.run(None, {session.get_inputs()[0].name: x})
        found = run(steps, x.astype(np.float64).ravel())
        scale = np.abs(np.asarray(expected)).max()
        np.testing.assert_allclose(found, np.asarray(expected).ravel(), atol=tolerance * scale)


def weights(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


IMAGE = (1, 4, 7, 6)
CASES = {
    "conv": (
        [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 0, 2, 1], strides=[2, 1])],
        {"w": (6, 4, 3, 2), "b": (6,)},
        IMAGE,
    ),
    "conv grouped and dilated": (
        [node("Conv", ["x", "w"], ["y"], group=2, dilations=[2, 1])],
        {"w": (6, 2, 3, 3)},
        IMAGE,
    ),
    "conv of one dimension": (
        [node("Conv", ["x", "w"], ["y"], strides=[2])],
        {"w": (3, 2, 3)},
        (1, 2, 9),
    ),
    "average pool": (
        [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])],
        {},
        IMAGE,
    ),
    "average pool counting padding": (
        [
            node(
                "AveragePool",
                ["x"],
                ["y"],
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
                count_include_pad=1,
            )
        ],
        {},
        IMAGE,
    ),
    "global average pool": ([node("GlobalAveragePool", ["x"], ["y"])], {}, IMAGE),
    "transpose": (
        [
            node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            node("Flatten", ["t"], ["f"]),
            node("Gemm", ["f", "w"], ["y"], alpha=0.5),
        ],
        {"w": (168, 3)},
        IMAGE,
    ),
    "residual": (
        [
            node("Relu", ["x"], ["r"]),
            node("MatMul", ["r", "w"], ["m"]),
            node("Add", ["m", "b"], ["a"]),
            node("Add", ["a", "x"], ["s"]),
            node("Add", ["s", "m"], ["u"]),
            node("Relu", ["u"], ["y"]),
        ],
        {"w": (5, 5), "b": (5,)},
        (1, 5),
    ),
    "sum behind a view": (
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("Identity", ["m"], ["i"]),
            node("Add", ["i", "b"], ["a"]),
            node("Add", ["a", "m"], ["y"]),
        ],
        {"w": (5, 4), "b": (4,)},
        (1, 5),
    ),
    "axes that come and go": (
        [
            node("Unsqueeze", ["x", "axes"], ["u"]),
            node("Flatten", ["u"], ["f"], axis=-1),
            node("Squeeze", ["f"], ["s"]),
            node("Unsqueeze", ["s", "last"], ["v"]),
            node("Squeeze", ["v", "last"], ["w"]),
            node("MatMul", ["w", "m"], ["y"]),
        ],
        {"axes": np.array([1, -1]), "last": np.array([-1]), "m": (5, 3)},
        (1, 5),
    ),
    "matrix on the left": ([node("MatMul", ["w", "x"], ["y"])], {"w": (3, 5)}, (5, 1)),
    "constants before": (
        [
            node("Sub", ["c", "x"], ["s"]),
            node("Mul", ["s", "b"], ["m"]),
            node("Div", ["m", "b"], ["d"]),
            node("Sub", ["d", "b"], ["y"]),
        ],
        {"c": (1, 5), "b": (5,)},
        (1, 5),
    ),
    "flattened": (
        [
            node("Flatten", ["x"], ["f"]),
            node("Dropout", ["f"], ["d"]),
            node("Gemm", ["d", "w", "b"], ["y"], transB=1),
        ],
        {"w": (3, 168), "b": (3,)},
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_are_read_as_onnxruntime_runs_them(name: str, tmp_path: Path):
    nodes, shapes, shape = CASES[name]
    drawn = {name: shape for name, shape in shapes.items() if isinstance(shape, tuple)}
    values = {**shapes, **dict(zip(drawn, weights(*drawn.values()), strict=True))}
    assert_same(save_onnx(tmp_path / "n.onnx", nodes, values, shape, ("n",)), shape)


def test_batch_norm_pad_and_reshape(tmp_path: Path):
    nodes = [
        node("Pad", ["x", "pads", "fill"], ["p"]),
        node("BatchNormalization", ["p", "g", "b", "m", "v"], ["n"], epsilon=1e-3),
        node("Reshape", ["n", "shape"], ["y"]),
    ]
    values = {name: np.abs(v) for name, v in zip("gbmv", weights(*[(4,)] * 4), strict=True)}
    values |= {
        "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]),
        "fill": np.float32(0.5),
        "shape": np.array([0, -1]),
    }
    assert_same(save_onnx(tmp_path / "n.onnx", nodes, values, IMAGE, ("n", "m")), IMAGE)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("Sigmoid", ["x"], ["y"])], "operator Sigmoid"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], "operator MaxPool"),
        ([node("Mul", ["x", "x"], ["y"])], "must be constant"),
        ([node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], ceil_mode=1)], "ceiling"),
        ([node("Relu", ["x"], ["y"]), node("Relu", ["y"], ["z"])], "not its last step"),
        ([node("Gemm", ["x", "w", "x"], ["y"])], "operand 'x' is not constant"),
        ([node("Conv", ["x", "k", "x"], ["y"])], "operand 'x' is not constant"),
        ([node("Pad", ["x", "pads", "", "axes"], ["y"])], "axes are not covered"),
        ([node("Pad", ["x", "pads", "x"], ["y"])], "operand 'x' is not constant"),
        ([node("Reshape", ["w", "x"], ["y"])], "Reshape"),
        ([node("Relu", ["x"], ["y"], domain="mine")], "operator Relu"),
        ([node("BatchNormalization", ["x", *"gggg"], ["y"], training_mode=1)], "statistics"),
    ],
)
def test_what_proofs_do_not_cover_is_named(nodes: list, words: str, tmp_path: Path):
    values = {"w": (6, 6), "k": (4, 4, 1, 1), "g": (4,)}
    given = dict(zip(values, weights(*values.values()), strict=True))
    given |= {"pads": np.zeros(8, np.int64), "axes": np.arange(4)[::-1].copy()}
    network = save_onnx(tmp_path / "n.onnx", nodes, given, IMAGE, ("n",))
    with pytest.raises(CertificateError, match=words):
        read_network(network)


def assert_charged(found: np.ndarray, wanted: list[Fraction], relative: float) -> None:
    """Some entries are rounded, and all within the error that the step admits."""
    pairs = [(Fraction(float(f)), w) for f, w in zip(found, wanted, strict=True)]
    assert any(f != w for f, w in pairs)
    assert all(abs(f - w) <= Fraction(relative) * abs(f) for f, w in pairs)


WIDE = np.random.default_rng(1).normal(size=5)  # float64, so that products with it are rounded
THIRD = float(np.float32(1 / 3))
ROUNDED = {
    "div": (node("Div", ["x", "w"], ["y"]), lambda v: 1 / v),
    "alpha": (node("Gemm", ["x", "d"], ["y"], alpha=THIRD), lambda v: v * Fraction(THIRD)),
    "beta": (node("Gemm", ["x", "i", "w"], ["y"], beta=THIRD), lambda v: v * Fraction(THIRD)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_entries_say_by_how_much(name: str, tmp_path: Path):
    operator, wanted = ROUNDED[name]
    values = {"w": WIDE, "d": np.diag(WIDE), "i": np.eye(5)}
    step = read_network(save_onnx(tmp_path / "n.onnx", [operator], values, (1, 5), ("n",)))[-1]
    found = step.weight if isinstance(step.weight, np.ndarray) else step.weight.toarray()
    found = step.bias if name == "beta" else np.diag(found)
    assert_charged(found, [wanted(Fraction(float(v))) for v in WIDE], step.relative)


def test_rounded_means_say_by_how_much(tmp_path: Path):
    operator = node("AveragePool", ["x"], ["y"], kernel_shape=[7, 7])
    step = read_network(save_onnx(tmp_path / "n.onnx", [operator], {}, (1, 1, 7, 7), ("n",)))[-1]
    assert_charged(step.weight.data, [Fraction(1, 49)] * 49, step.relative)


def test_rounded_roots_say_by_how_much(tmp_path: Path):
    tenth = float(np.float32(0.1))
    operator = node("BatchNormalization", ["x", "w", "w", "o", "v"], ["y"], epsilon=tenth)
    values = {"w": WIDE, "o": np.zeros(5), "v": WIDE**2}
    step = read_network(save_onnx(tmp_path / "n.onnx", [operator], values, (1, 5), ("n",)))[-1]
    squares = [Fraction(float(f)) ** 2 for f in step.weight.toarray().diagonal()]
    for square, v in zip(squares, map(float, WIDE), strict=True):
        wanted = Fraction(v) ** 2 / (Fraction(v**2) + Fraction(tenth))
        assert 0 < abs(square - wanted) <= 2 * Fraction(step.relative) * square


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    values = {"w": np.full((5, 2), np.nan, np.float32)}
    network = save_onnx(
        tmp_path / "n.onnx", [node("MatMul", ["x", "w"], ["y"])], values, (1, 5), (1, 2)
    )
    with pytest.raises(CertificateError, match="not finite"):
        read_network(network)


@pytest.mark.skipif(not DATA.exists(), reason="needs the vnn data (HOLDFAST_DATA)")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("acasxu/onnx/ACASXU_run2a_1_1_batch_2000.onnx", (1, 1, 1, 5)),
        ("mnist_fc/onnx/mnist-net_256x4.onnx", (1, 784, 1)),
        ("oval21/onnx/cifar_base_kw.onnx", (1, 3, 32, 32)),
        ("rl_benchmarks/onnx/dubinsrejoin.onnx", (1, 8)),
        ("verivital/Convnet_avgpool.onnx", (1, 1, 28, 28)),
    ],
)
def test_networks_of_the_competition(name: str, shape: tuple[int, ...]):
    assert_same(DATA / name, shape)
