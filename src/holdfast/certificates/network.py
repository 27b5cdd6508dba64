"""Read an ONNX file as a chain of exact affine maps, ReLUs and sums, for checking proofs.

Written for the checker alone: it takes the weights from the file itself and turns everything
linear (convolution, average pooling, normalisation, padding, transposition, ...) into one matrix on
the flattened values, so that the arithmetic of a proof knows three kinds of steps only. Matrix
entries are the stored float32 numbers, exactly; where an entry has to be computed (a division or a
square root), ``relative`` bounds its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy import sparse

from holdfast.certificates.errors import CertificateError

Array = NDArray[np.float64]
Matrix = Any
"""A dense or a scipy sparse matrix; their type stubs share no type with a shape."""
UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step: ``weight @ v + bias``, ``max(v, 0)`` or the sum of two earlier values.

    Attributes:
        kind: what it computes; ``"input"`` for step 0.
        sources: numbers of the steps it reads.
        size: length of its value.
        weight: ``(size, size of source)``; dense or sparse.
        bias: ``(size,)``.
        relative: bound of the relative error of each entry of weight and bias.
    """

    kind: Literal["input", "affine", "relu", "add"]
    sources: tuple[int, ...]
    size: int
    weight: Matrix | None = None
    bias: Array | None = None
    relative: float = 0.0


def read_network(path: str | Path) -> tuple[Step, ...]:
    """The steps of an ONNX file, in order; the last one is the output.

    Raises:
        CertificateError: unreadable, not finite, several inputs or outputs, or with an operator
            that proofs do not cover (which is named).
    """
    reader = _Reader(_load(path), [])
    if len(reader.inputs) != 1 or len(reader.graph.output) != 1:
        raise CertificateError("only networks with one input and one output are supported")
    reader.found.append(Step("input", (), reader.size(0)))
    reader.read([0])
    if reader.places[reader.graph.output[0].name] != len(reader.found) - 1:
        raise CertificateError("the output of the network is not its last step")
    return tuple(reader.found)


def append_network(
    found: list[Step], path: str | Path, inputs: Sequence[int], hidden: Sequence[str]
) -> list[int]:
    """Add the steps of an ONNX file behind others.

    Args:
        found: the steps so far, to be added to.
        path: the file.
        inputs: numbers of the steps that are its inputs.
        hidden: names of inner values that are asked for beside the outputs.

    Returns:
        Numbers of the steps that compute the inner values and the outputs.

    Raises:
        CertificateError: as `read_network`, or with other inputs.
    """
    reader = _Reader(_load(path), found)
    sizes = [found[at].size for at in inputs]
    if sizes != [reader.size(i) for i in range(len(reader.inputs))]:
        raise CertificateError(f"the inputs of {str(path)!r} are not those that are declared")
    reader.read(inputs)
    names = [*hidden, *(o.name for o in reader.graph.output)]
    if missing := [name for name in names if name not in reader.places]:
        raise CertificateError(f"{str(path)!r} has no value {missing[0]!r} that is computed")
    return [reader.places[name] for name in names]


def _load(path: str | Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:
        raise CertificateError(f"cannot read the network {str(path)!r}: {error}") from error


class _Reader:
    """State while reading: for each tensor the step (or constant) behind it and its shape."""

    def __init__(self, model: onnx.ModelProto, found: list[Step]) -> None:
        graph = model.graph
        self.graph = graph
        self.constants: dict[str, NDArray[Any]] = {
            t.name: numpy_helper.to_array(t) for t in graph.initializer
        }
        self.inputs = [v for v in graph.input if v.name not in self.constants]
        self.shapes: dict[str, tuple[int, ...]] = {}
        for value in self.inputs:
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            self.shapes[value.name] = tuple(d if d > 0 else 1 for d in dims)
        self.places: dict[str, int] = {}
        self.found = found

    def size(self, index: int) -> int:
        """Elements of an input."""
        return int(np.prod(self.shapes[self.inputs[index].name]))

    def read(self, inputs: Sequence[int]) -> None:
        """Add all steps; ``inputs`` are the numbers of those that the inputs are."""
        self.places |= {v.name: at for v, at in zip(self.inputs, inputs, strict=True)}
        for node in self.graph.node:
            if node.op_type == "Constant":
                (value,) = node.attribute
                self.constants[node.output[0]] = _attribute(value)
                continue
            handler = HANDLERS.get(node.op_type)
            if handler is None:
                raise CertificateError(
                    f"operator {node.op_type} ({node.output[0]}) is not covered by proofs; "
                    f"covered: {', '.join(sorted(HANDLERS))}"
                )
            try:
                handler(self, node, {a.name: _attribute(a) for a in node.attribute})
            except (KeyError, IndexError, ValueError, StopIteration) as error:
                if isinstance(error, CertificateError):
                    raise
                raise CertificateError(
                    f"operator {node.op_type} ({node.output[0]}) has a form that proofs do not "
                    f"cover: {error}"
                ) from error

    def put(self, node: onnx.NodeProto, step: Step | None, shape: Sequence[int]) -> None:
        """Enter the value of ``node``; no step: its source, seen in another shape."""
        if step is None:
            self.places[node.output[0]] = self.places[self.variable(node)]
        else:
            for values in (step.weight, step.bias):
                data = values.data if isinstance(values, sparse.csr_array) else values
                if data is not None and not np.isfinite(np.asarray(data)).all():
                    raise CertificateError(f"weights of {node.output[0]} are not finite")
            self.places[node.output[0]] = len(self.found)
            self.found.append(step)
        self.shapes[node.output[0]] = tuple(int(d) for d in shape)

    def variable(self, node: onnx.NodeProto) -> str:
        """Name of the first operand that is not a constant."""
        return next(name for name in node.input if name not in self.constants)

    def constant(self, node: onnx.NodeProto, index: int) -> Array | None:
        """Operand ``index`` as float64 when it is given and constant."""
        name = node.input[index] if len(node.input) > index else ""
        value = self.constants.get(name)
        return None if value is None else np.asarray(value, dtype=np.float64)

    def affine(
        self,
        node: onnx.NodeProto,
        weight: Matrix,
        bias: Array,
        shape: Sequence[int],
        relative: float = 0.0,
    ) -> None:
        """Enter an affine step behind the variable operand."""
        source = self.places[self.variable(node)]
        step = Step("affine", (source,), weight.shape[0], weight, bias, relative)
        self.put(node, step, shape)

    def elementwise(
        self, node: onnx.NodeProto, scale: Array, shift: Array, relative: float = 0.0
    ) -> None:
        """Enter ``scale * v + shift``, both of the shape of v or broadcast to it."""
        name = self.variable(node)
        shape, last = self.shapes[name], self.found[-1]
        if (scale == 1).all() and last.bias is not None and not last.bias.any():
            at = self.places[name]
            users = [other for other in self.graph.node if name in other.input]
            names = [other for other, place in self.places.items() if place == at]
            if at == len(self.found) - 1 and len(users) == len(names) == 1 and not last.relative:
                bias = np.broadcast_to(shift, shape).ravel().astype(np.float64)
                self.found[-1] = replace(last, bias=bias)  # MatMul, then Add: still exact
                return self.put(node, None, shape)
        scale, shift = (np.broadcast_to(v, shape).ravel() for v in (scale, shift))
        weight = sparse.csr_array(sparse.diags_array(scale))
        return self.affine(node, weight, np.array(shift, dtype=np.float64), shape, relative)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _alias(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    """Flatten, Reshape, Identity and their kin: the same numbers in the same order."""
    source = reader.shapes[reader.variable(node)]
    match node.op_type:
        case "Flatten":
            axis = attributes.get("axis", 1) % (len(source) + 1)
            shape = [int(np.prod(source[:axis])), int(np.prod(source[axis:]))]
        case "Reshape":
            wanted = reader.constant(node, 1)
            shape = attributes["shape"] if wanted is None else [int(v) for v in wanted]
            shape = [source[i] if d == 0 else d for i, d in enumerate(shape)]
            known = int(np.prod([d for d in shape if d != -1]))
            shape = [int(np.prod(source)) // known if d == -1 else d for d in shape]
        case "Squeeze" | "Unsqueeze":
            axes = reader.constant(node, 1)
            given = attributes.get("axes") if axes is None else [int(v) for v in axes]
            if node.op_type == "Squeeze":
                axes = given or [i for i, d in enumerate(source) if d == 1]
                shape = [
                    d for i, d in enumerate(source) if i not in {a % len(source) for a in axes}
                ]
            else:
                shape = list(np.expand_dims(np.empty(source), tuple(given or ())).shape)
        case _:
            shape = source
    reader.put(node, None, shape)


def _relu(reader: _Reader, node: onnx.NodeProto, _: Mapping[str, Any]) -> None:
    source = reader.places[node.input[0]]
    step = Step("relu", (source,), reader.found[source].size)
    reader.put(node, step, reader.shapes[node.input[0]])


def _gemm(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    weight = reader.constant(node, 1)
    if weight is None or attributes.get("transA"):
        raise CertificateError(f"Gemm {node.output[0]} is not a linear layer of one variable")
    weight = weight if attributes.get("transB") else weight.T
    bias = reader.constant(node, 2)
    bias = np.zeros(len(weight)) if bias is None else bias
    bias = np.broadcast_to(bias, (1, len(weight))).ravel() * attributes.get("beta", 1.0)
    shape = (*reader.shapes[node.input[0]][:-1], len(weight))
    alpha = attributes.get("alpha", 1.0)
    weight = np.ascontiguousarray(weight) * alpha
    reader.affine(node, weight, bias, shape, 0.0 if alpha == 1 else UNIT)


def _matmul(reader: _Reader, node: onnx.NodeProto, _: Mapping[str, Any]) -> None:
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


def _add(reader: _Reader, node: onnx.NodeProto, _: Mapping[str, Any]) -> None:
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


def _mul(reader: _Reader, node: onnx.NodeProto, _: Mapping[str, Any]) -> None:
    """A product with, or a division by, a constant."""
    factor = reader.constant(node, 1)
    if node.op_type == "Mul" and factor is None:
        factor = reader.constant(node, 0)
    if factor is None:
        raise CertificateError(f"{node.op_type} {node.output[0]}: an operand must be constant")
    divides = node.op_type == "Div"
    reader.elementwise(node, 1.0 / factor if divides else factor, np.zeros(1), 2 * UNIT * divides)


def _batch_norm(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    values = [reader.constant(node, i) for i in range(1, 5)]
    if any(v is None for v in values):
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


def _transpose(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    shape = reader.shapes[node.input[0]]
    order = attributes.get("perm") or list(range(len(shape)))[::-1]
    picked = np.arange(np.prod(shape)).reshape(shape).transpose(order)
    _select(reader, node, picked, np.zeros(1))


def _pad(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    if attributes.get("mode", "constant") != "constant":
        raise CertificateError(f"Pad {node.output[0]}: only constant padding is covered")
    given = reader.constant(node, 1)
    pads = attributes["pads"] if given is None else [int(v) for v in given]
    fill = reader.constant(node, 2)
    value = attributes.get("value", 0.0) if fill is None else float(fill.ravel()[0])
    shape = reader.shapes[node.input[0]]
    widths = list(zip(pads[: len(shape)], pads[len(shape) :], strict=True))
    picked = np.pad(np.arange(np.prod(shape)).reshape(shape), widths, constant_values=-1)
    _select(reader, node, picked, np.where(picked < 0, value, 0.0).ravel())


def _select(reader: _Reader, node: onnx.NodeProto, picked: NDArray[Any], bias: Array) -> None:
    """Every output is the input at its index in ``picked``, or zero for -1, plus the bias."""
    rows = np.flatnonzero(picked.ravel() >= 0)
    size = (picked.size, reader.found[reader.places[node.input[0]]].size)
    weight = sparse.csr_array((np.ones(len(rows)), (rows, picked.ravel()[rows])), shape=size)
    reader.affine(node, weight, np.broadcast_to(bias, (picked.size,)).copy(), picked.shape)


def _windows(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any], kernel: Sequence[int]
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


def _conv(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
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
    bias = reader.constant(node, 2)
    bias = np.repeat(np.zeros(out) if bias is None else bias, columns.shape[1])
    reader.affine(node, sparse.csr_array(entries, shape=size), bias, (1, out, *space))


def _average(reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
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


HANDLERS: dict[str, Callable[[_Reader, onnx.NodeProto, Mapping[str, Any]], None]] = {
    **dict.fromkeys(("Flatten", "Reshape", "Identity", "Dropout", "Squeeze", "Unsqueeze"), _alias),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Mul", "Div"), _mul),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _average),
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Relu": _relu,
    "Transpose": _transpose,
}
