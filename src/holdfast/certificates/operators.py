"""ONNX operators as exact affine steps, ReLUs and sums, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy import sparse

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.steps import UNIT, Array, Reader, Step

Attributes = Mapping[str, Any]
Handler = Callable[[Reader, onnx.NodeProto, Attributes], None]


def _same(reader: Reader, node: onnx.NodeProto, _: Attributes) -> None:
    reader.alias(node, node.input[0], reader.shapes[node.input[0]])


def _flatten(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    source, axis = reader.shapes[node.input[0]], attributes.get("axis", 1)
    axis = axis if axis >= 0 else axis + len(source)
    shape = [int(np.prod(source[:axis])), int(np.prod(source[axis:]))]
    reader.alias(node, node.input[0], shape)


def _reshape(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    source, wanted = reader.shapes[node.input[0]], reader.option(node, 1)
    shape = attributes["shape"] if wanted is None else [int(v) for v in wanted]
    shape = [source[i] if d == 0 else d for i, d in enumerate(shape)]
    known = int(np.prod([d for d in shape if d != -1]))
    shape = [int(np.prod(source)) // known if d == -1 else d for d in shape]
    reader.alias(node, node.input[0], shape)


def _squeeze(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    source = reader.shapes[node.input[0]]
    axes = {a % len(source) for a in _axes(reader, node, attributes)}
    axes = axes or {i for i, d in enumerate(source) if d == 1}
    reader.alias(node, node.input[0], [d for i, d in enumerate(source) if i not in axes])


def _unsqueeze(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    source, axes = reader.shapes[node.input[0]], _axes(reader, node, attributes)
    reader.alias(node, node.input[0], np.expand_dims(np.empty(source), axes).shape)


def _axes(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> tuple[int, ...]:
    given = reader.option(node, 1)
    return tuple(attributes.get("axes") or () if given is None else (int(v) for v in given))


def _relu(reader: Reader, node: onnx.NodeProto, _: Attributes) -> None:
    source = reader.places[node.input[0]]
    step = Step("relu", (source,), reader.found[source].size)
    reader.put(node, step, reader.shapes[node.input[0]])


def _gemm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    weight = reader.constant(node, 1)
    if weight is None or attributes.get("transA"):
        raise CertificateError(f"Gemm {node.output[0]} is not a linear layer of one variable")
    weight = weight if attributes.get("transB") else weight.T
    alpha, beta = (attributes.get(name, 1.0) for name in ("alpha", "beta"))
    bias = reader.option(node, 2)
    bias = np.zeros(len(weight)) if bias is None else bias
    bias = np.broadcast_to(bias, (1, len(weight))).ravel() * beta
    shape = (*reader.shapes[node.input[0]][:-1], len(weight))
    weight = np.ascontiguousarray(weight) * alpha
    reader.affine(node, weight, bias, shape, 0.0 if alpha == beta == 1 else UNIT)


def _matmul(reader: Reader, node: onnx.NodeProto, _: Attributes) -> None:
    right, left = reader.constant(node, 1), reader.constant(node, 0)
    shape = reader.shapes[reader.variable(node)]
    rows = int(np.prod(shape[:-1])) if right is not None else int(np.prod(shape[1:]))
    if right is not None and right.ndim == 2 and rows == 1:
        weight, shape = right.T, (*shape[:-1], right.shape[1])
    elif left is not None and left.ndim == 2 and rows == 1:
        weight, shape = left, (left.shape[0], *shape[1:])
    else:
        raise CertificateError(f"MatMul {node.output[0]} is not a matrix times one vector")
    reader.affine(node, np.ascontiguousarray(weight), np.zeros(len(weight)), shape)


def _add(reader: Reader, node: onnx.NodeProto, _: Attributes) -> None:
    """A sum, or a difference, with a constant or of two variables."""
    sign = -1.0 if node.op_type == "Sub" else 1.0
    first, second = reader.constant(node, 0), reader.constant(node, 1)
    one = np.ones(1)
    if second is not None:
        return reader.elementwise(node, one, sign * second)
    if first is not None:
        return reader.elementwise(node, sign * one, first)
    shapes = [reader.shapes[name] for name in node.input]
    if sign < 0 or shapes[0] != shapes[1]:
        raise CertificateError(f"{node.op_type} {node.output[0]} of two variables: only sums of "
                               "equal shapes are covered by proofs")  # fmt: skip
    left, right = (reader.places[name] for name in node.input)
    step = Step("add", (left, right), reader.found[left].size)
    return reader.put(node, step, shapes[0])


def _mul(reader: Reader, node: onnx.NodeProto, _: Attributes) -> None:
    """A product with, or a division by, a constant."""
    factor = reader.constant(node, 1)
    if node.op_type == "Mul" and factor is None:
        factor = reader.constant(node, 0)
    if factor is None:
        raise CertificateError(f"{node.op_type} {node.output[0]}: an operand must be constant")
    divides = node.op_type == "Div"
    reader.elementwise(node, 1.0 / factor if divides else factor, np.zeros(1), 2 * UNIT * divides)


def _batch_norm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    values = [reader.constant(node, i) for i in range(1, 5)]
    if any(v is None for v in values) or attributes.get("training_mode"):
        raise CertificateError(f"BatchNormalization {node.output[0]} has variable statistics")
    gamma, beta, mean, variance = (v for v in values if v is not None)
    shape = reader.shapes[node.input[0]]
    broadcast = (1, -1) + (1,) * (len(shape) - 2)
    scale = (gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))).reshape(broadcast)
    # Two steps, as v - mean is exact in the constants: its scale alone carries a rounding error.
    centred = onnx.helper.make_node("Sub", [node.input[0]], [f"{node.output[0]}/centred"])
    reader.elementwise(centred, np.ones(1), -mean.reshape(broadcast))
    scaled = onnx.helper.make_node("Mul", [centred.output[0]], [node.output[0]])
    reader.elementwise(scaled, scale, beta.reshape(broadcast), 8 * UNIT)


def _transpose(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    shape = reader.shapes[node.input[0]]
    order = attributes.get("perm") or list(range(len(shape)))[::-1]
    picked = np.arange(np.prod(shape)).reshape(shape).transpose(order)
    _select(reader, node, picked, np.zeros(1))


def _pad(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    if attributes.get("mode", "constant") != "constant":
        raise CertificateError(f"Pad {node.output[0]}: only constant padding is covered")
    if reader.option(node, 3) is not None:
        raise CertificateError(f"Pad {node.output[0]}: axes are not covered by proofs")
    given = reader.option(node, 1)
    pads = attributes["pads"] if given is None else [int(v) for v in given]
    fill = reader.option(node, 2)
    value = attributes.get("value", 0.0) if fill is None else float(fill.ravel()[0])
    shape = reader.shapes[node.input[0]]
    widths = list(zip(pads[: len(shape)], pads[len(shape) :], strict=True))
    picked = np.pad(np.arange(np.prod(shape)).reshape(shape), widths, constant_values=-1)
    _select(reader, node, picked, np.where(picked < 0, value, 0.0).ravel())


def _select(reader: Reader, node: onnx.NodeProto, picked: NDArray[Any], bias: Array) -> None:
    """Every output is the input at its index in ``picked``, or zero for -1, plus the bias."""
    rows = np.flatnonzero(picked.ravel() >= 0)
    size = (picked.size, reader.found[reader.places[node.input[0]]].size)
    weight = sparse.csr_array((np.ones(len(rows)), (rows, picked.ravel()[rows])), shape=size)
    reader.affine(node, weight, np.broadcast_to(bias, (picked.size,)).copy(), picked.shape)


def _windows(
    reader: Reader, node: onnx.NodeProto, attributes: Attributes, kernel: Sequence[int]
) -> NDArray[np.int64]:
    """Flat input index under every window, -1 for padding: ``(channels, *out, *kernel)``."""
    _, channels, *space = reader.shapes[node.input[0]]
    n = len(space)
    strides, dilations = (attributes.get(k) or [1] * n for k in ("strides", "dilations"))
    pads = list(attributes.get("pads") or [0] * (2 * n))
    if attributes.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or attributes.get(
        "ceil_mode"
    ):
        raise CertificateError(f"{node.op_type} {node.output[0]}: automatic padding and ceiling "
                               "mode are not covered by proofs")  # fmt: skip
    widths = [(0, 0), *zip(pads[:n], pads[n:], strict=True)]
    index = np.arange(channels * int(np.prod(space))).reshape(channels, *space)
    index = np.pad(index, widths, constant_values=-1)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(index, spans, axis=tuple(range(1, n + 1)))
    places = tuple(slice(None, None, s) for s in strides)
    return view[(slice(None), *places, *(slice(None, None, d) for d in dilations))]


def _conv(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    kernel = reader.constant(node, 1)
    if kernel is None:
        raise CertificateError(f"Conv {node.output[0]}: the kernel must be constant")
    windows = _windows(reader, node, attributes, kernel.shape[2:])
    n, group = kernel.ndim - 2, attributes.get("group", 1)
    out, per_group = kernel.shape[0], kernel.shape[1]
    space = windows.shape[1 : n + 1]
    windows = windows.reshape(group, per_group, int(np.prod(space)), -1)
    taken = windows.transpose(0, 2, 1, 3).reshape(group, windows.shape[2], -1)  # (g, places, taps)
    columns = np.repeat(taken, out // group, axis=0)  # (out, places, taps)
    values = np.broadcast_to(kernel.reshape(out, 1, -1), columns.shape)
    rows = np.broadcast_to(np.arange(out * columns.shape[1]).reshape(out, -1, 1), columns.shape)
    real = columns.ravel() >= 0
    size = (out * columns.shape[1], reader.found[reader.places[node.input[0]]].size)
    entries = values.ravel()[real], (rows.ravel()[real], columns.ravel()[real])
    bias = reader.option(node, 2)
    bias = np.repeat(np.zeros(out) if bias is None else bias, columns.shape[1])
    reader.affine(node, sparse.csr_array(entries, shape=size), bias, (1, out, *space))


def _average(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> None:
    shape = reader.shapes[node.input[0]]
    is_global = node.op_type == "GlobalAveragePool"
    kernel = shape[2:] if is_global else attributes["kernel_shape"]
    windows = _windows(reader, node, attributes, kernel)
    space = windows.shape[1 : len(kernel) + 1]
    columns = windows.reshape(shape[1] * int(np.prod(space)), -1)
    real = columns >= 0
    count = columns.shape[1] if attributes.get("count_include_pad") else real.sum(1, keepdims=True)
    values = np.broadcast_to(1.0 / count, columns.shape)
    rows = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)
    size = (len(columns), reader.found[reader.places[node.input[0]]].size)
    weight = sparse.csr_array((values[real], (rows[real], columns[real])), shape=size)
    reader.affine(node, weight, np.zeros(len(columns)), (1, shape[1], *space), 2 * UNIT)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Mul", "Div"), _mul),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _average),
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
