"""What a network is read into for checking proofs, and the state while it is read.

Written for the checker alone: everything linear (convolution, average pooling, normalisation,
padding, transposition, ...) becomes one matrix on the flattened values, so that the arithmetic of a
proof knows three kinds of steps only. Matrix entries are the stored numbers, exactly; where an
entry has to be computed (a division or a square root), ``relative`` bounds its error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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


class Reader:
    """For each tensor of an ONNX graph the step (or constant) behind it and its shape.

    Args:
        model: the network.
        found: the steps so far, to be added to.
        asked: names of values that have to stay as they are, beside the outputs.
    """

    def __init__(
        self, model: onnx.ModelProto, found: list[Step], asked: Iterable[str] = ()
    ) -> None:
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
        self.asked = {*asked, *(o.name for o in graph.output)}

    def size(self, index: int) -> int:
        """Elements of an input."""
        return int(np.prod(self.shapes[self.inputs[index].name]))

    def put(self, node: onnx.NodeProto, step: Step, shape: Sequence[int]) -> None:
        """Enter the value of ``node``."""
        for values in (step.weight, step.bias):
            data = values.data if isinstance(values, sparse.csr_array) else values
            if data is not None and not np.isfinite(np.asarray(data)).all():
                raise CertificateError(f"weights of {node.output[0]} are not finite")
        self.places[node.output[0]] = len(self.found)
        self.found.append(step)
        self.shapes[node.output[0]] = tuple(int(d) for d in shape)

    def alias(self, node: onnx.NodeProto, name: str, shape: Sequence[int]) -> None:
        """The value of ``node`` is that of ``name``, seen in another shape."""
        self.places[node.output[0]] = self.places[name]
        self.shapes[node.output[0]] = tuple(int(d) for d in shape)

    def variable(self, node: onnx.NodeProto) -> str:
        """Name of the first operand that is not a constant."""
        return next(name for name in node.input if name not in self.constants)

    def constant(self, node: onnx.NodeProto, index: int) -> Array | None:
        """Operand ``index`` as float64 when it is given and constant."""
        name = node.input[index] if len(node.input) > index else ""
        value = self.constants.get(name)
        return None if value is None else np.asarray(value, dtype=np.float64)

    def option(self, node: onnx.NodeProto, index: int) -> Array | None:
        """Operand ``index`` as float64; None only where it is left out.

        Raises:
            CertificateError: it is computed.
        """
        value = self.constant(node, index)
        if value is None and len(node.input) > index and node.input[index]:
            raise CertificateError(
                f"operator {node.op_type} ({node.output[0]}): its operand {node.input[index]!r} "
                "is not constant, which proofs do not cover"
            )
        return value

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
        shape = self.shapes[name]
        scale, shift = (np.broadcast_to(v, shape).ravel() for v in (scale, shift))
        bias = np.array(shift, dtype=np.float64)
        if (scale == 1).all() and self.takes_bias(name):
            self.found[-1] = replace(self.found[-1], bias=bias)  # MatMul, then Add: still exact
            self.alias(node, name, shape)
        else:
            weight = sparse.csr_array(sparse.diags_array(scale))
            self.affine(node, weight, bias, shape, relative)

    def takes_bias(self, name: str) -> bool:
        """Whether a value is an exact product, the last step, and read by one node and nobody else.

        Then that node may change it in place.
        """
        last, at = self.found[-1], self.places[name]
        if at != len(self.found) - 1 or name in self.asked:
            return False
        if last.bias is None or last.bias.any() or last.relative:
            return False
        n_readers = sum(name in node.input for node in self.graph.node)
        n_names = sum(place == at for place in self.places.values())
        return n_readers == n_names == 1
