"""Builds graphs node by node, and finds the operator files that know how.

Every module under ``graphs/operators`` registers functions for names of ONNX operators
(``@onnx("Relu")``) or ATen operators (``@aten("relu")``); adding an operator is adding a file.
Values are either ``Ref`` (depends on the input) or tensors (constants, with the batch axis the
framework gave them).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from torch import Tensor

from holdfast.graphs.errors import GraphError
from holdfast.graphs.graph import Graph, Input, Node
from holdfast.graphs.operator import Operator


@final
@dataclass(frozen=True, slots=True)
class Ref:
    """A node under construction: position and shape without the batch axis."""

    index: int
    shape: tuple[int, ...]


@final
class Layered(tuple[Ref, ...]):
    """Values of several layers, which the framework stacks before the batch axis."""

    __slots__ = ()


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """A value whose batch axis was moved, as between ``permute`` and ``select``.

    Attributes:
        ref: One sample of it, in the order of the other axes.
        at: The framework's axis that is the batch.
    """

    ref: Ref
    at: int


Value = Any  # Ref | Tensor | number | None | list of these, as the framework passes it
Build = Callable[["Call"], Any]
_ONNX: dict[str, Build] = {}
_ATEN: dict[str, Build] = {}
_BATCH_ANYWHERE: set[Build] = set()


def batch_anywhere(build: Build) -> Build:
    """Marks a function that also takes a value whose batch axis was moved."""
    _BATCH_ANYWHERE.add(build)
    return build


def onnx(*names: str) -> Callable[[Build], Build]:
    """Registers a function for ONNX operators of these names."""
    return lambda build: (_ONNX.update(dict.fromkeys(names, build)), build)[1]


def aten(*names: str) -> Callable[[Build], Build]:
    """Registers a function for ATen operators of these names (overloads left out)."""
    return lambda build: (_ATEN.update(dict.fromkeys(names, build)), build)[1]


@cache
def known(kind: str) -> Mapping[str, Build]:
    """All registered functions of a kind, ``"onnx"`` or ``"aten"``."""
    import holdfast.graphs.operators as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _ONNX if kind == "onnx" else _ATEN


def is_variable(value: Value) -> bool:
    """Whether a value depends on the input."""
    return isinstance(value, (Ref, Moved))


def framework_shape(value: Ref | Moved) -> tuple[int, ...]:
    """Shape for a single sample, batch axis included."""
    if isinstance(value, Ref):
        return (1, *value.shape)
    return (*value.ref.shape[: value.at], 1, *value.ref.shape[value.at :])


def leaves(tree: Any) -> list[Any]:
    """What lists and dictionaries of arguments hold."""
    if isinstance(tree, Mapping):
        return [leaf for v in tree.values() for leaf in leaves(v)]
    if isinstance(tree, (list, tuple)):
        return [leaf for v in tree for leaf in leaves(v)]
    return [tree]


def built(build: Build, call: Call) -> Value:
    """What a function makes of a call.

    Raises:
        GraphError: the batch axis was moved, and the function needs it in front.
    """
    given = leaves((list(call.args), call.attributes))
    moved = next((v for v in given if isinstance(v, Moved)), None)
    if moved is not None and build not in _BATCH_ANYWHERE:
        raise call.error(
            f"its argument has the batch as axis {moved.at}; permute it to the front, or take one "
            "element of the axes before it, first"
        )
    return build(call)


@contextmanager
def readable(name: str, place: str, hint: str = "") -> Iterator[None]:
    """Whatever goes wrong while an operator is read names it and its place.

    Raises:
        GraphError: an operator with arguments that nobody expected.
    """
    try:
        yield
    except GraphError:
        raise
    except Exception as error:
        text = f"operator {name!r} at {place!r} cannot be read ({error})"
        raise GraphError(f"{text}; {hint}" if hint else text) from error


class Builder:
    """Collects nodes; ``emit`` appends one and infers its shape by running it on zeros.

    Args:
        input_shape: Shape of one input.
        shapes: Shapes of all nodes where they are known from an earlier reading.
    """

    def __init__(
        self, input_shape: Sequence[int], shapes: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        shape = tuple(int(s) for s in input_shape)
        self.nodes = [Node(0, "input", Input(), (), shape)]
        self._shapes = shapes

    def emit(self, op: Operator, *inputs: Ref, place: str) -> Ref:
        """Append ``op`` applied to ``inputs``."""
        index = len(self.nodes)
        shape = self._shape(op, inputs) if self._shapes is None else self._shapes[index]
        self.nodes.append(Node(index, place, op, tuple(r.index for r in inputs), shape))
        return Ref(index, shape)

    @torch.no_grad()
    def _shape(self, op: Operator, inputs: Sequence[Ref]) -> tuple[int, ...]:
        zeros = [torch.zeros(1, *ref.shape) for ref in inputs]
        return tuple(op.to(torch.float32).run(*zeros).shape[1:])

    def graph(self, output: Ref) -> Graph:
        """The graph that ends at ``output``; nodes that it does not need are dropped."""
        needed = {output.index}
        for node in reversed(self.nodes):
            if node.index in needed:
                needed.update(node.inputs)
        needed.add(0)
        order = sorted(needed)
        position = {old: new for new, old in enumerate(order)}
        nodes = []
        for old in order:
            node = self.nodes[old]
            inputs = tuple(position[i] for i in node.inputs)
            nodes.append(Node(position[old], node.place, node.op, inputs, node.shape))
        return Graph(tuple(nodes))


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One call of a framework's operator, as an operator file sees it.

    Attributes:
        name: Name of the operator in its framework.
        args: Positional values.
        attributes: Named values.
        builder: Where nodes are emitted.
        place: Name of the call in the model.
        opset: ONNX operator set, 0 for ATen.
    """

    name: str
    args: Sequence[Value]
    attributes: Mapping[str, Value]
    builder: Builder
    place: str
    opset: int = 0

    def emit(self, op: Operator, *inputs: Ref) -> Ref:
        """Append a node for this call."""
        return self.builder.emit(op, *inputs, place=self.place)

    def get(self, position: int, name: str, default: Value = None) -> Value:
        """The value at a position, else under a name, else the default."""
        if position < len(self.args) and self.args[position] is not None:
            return self.args[position]
        value = self.attributes.get(name)
        return default if value is None else value

    def ref(self, position: int = 0) -> Ref:
        """The value at a position, which must depend on the input."""
        value = self.args[position]
        if not isinstance(value, Ref):
            raise self.error(f"argument {position} is a constant where a variable is expected")
        return value

    def variable(self, position: int = 0) -> Ref | Moved:
        """The same, wherever its batch axis is."""
        value = self.args[position]
        return value if isinstance(value, Moved) else self.ref(position)

    def constant(self, position: int, name: str = "") -> Tensor | None:
        """The value at a position as a tensor, which must not depend on the input."""
        value = self.get(position, name)
        if isinstance(value, Ref):
            raise self.error(
                f"argument {position} depends on the input; only constants can stand there"
            )
        if value is None or isinstance(value, Tensor):
            return value
        return torch.as_tensor(value)

    def ints(self, position: int, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A list of integers given as attribute, constant tensor, list or single number."""
        value = self.get(position, name, default)
        if value is None:
            return []
        return [int(v) for v in torch.as_tensor(value).flatten().tolist()]

    def axis(self, axis: int, ref: Ref) -> int:
        """An axis of the framework as an axis without the batch; the batch itself is refused."""
        rank = len(ref.shape) + 1
        position = axis % rank
        if position == 0:
            raise self.error(f"axis {axis} is the batch axis; samples must not be mixed")
        return position - 1

    def move(self, rearrange: Callable[[Tensor], Tensor], value: Ref | Moved) -> Ref:
        """Append any rearrangement of elements, found by applying it to their positions."""
        found = self.moved(lambda p: [rearrange(p)], value)[0]
        if isinstance(found, Moved):
            raise self.error(f"moves the batch axis to position {found.at}")
        return found

    def moved(
        self, rearrange: Callable[[Tensor], Sequence[Tensor]], value: Ref | Moved
    ) -> list[Ref | Moved]:
        """The same for operators with several results, wherever the batch axis ends up."""
        from holdfast.graphs.operators.take import take

        ref = value if isinstance(value, Ref) else value.ref
        count = torch.Size(ref.shape).numel()
        if isinstance(value, Ref):
            results = rearrange(torch.arange(count).reshape(1, *ref.shape))
            if all(p.shape[:1] == (1,) for p in results):
                return [take(self, ref, p[0]) for p in results]
        at = 0 if isinstance(value, Ref) else value.at
        both = rearrange(torch.arange(2 * count).reshape(2, *ref.shape).movedim(0, at))
        places = [_batch_axis(p, count) for p in both]
        if None in places:
            raise self.error(f"mixes the batch axis (shape {tuple(both[0].shape)} for two samples)")
        refs = [
            take(self, ref, p.select(d, 0))
            for p, d in zip(both, places, strict=True)
            if d is not None
        ]
        return [Moved(r, d) if d else r for r, d in zip(refs, places, strict=True)]

    def error(self, why: str) -> GraphError:
        """An error that names this call."""
        return GraphError(f"{self.name!r} at {self.place!r}: {why}")


def _batch_axis(positions: Tensor, count: int) -> int | None:
    """The axis along which the second of two samples follows the first, or None."""
    for axis, size in enumerate(positions.shape):
        if size == 2:
            first, second = positions.unbind(axis)
            if bool((first < count).all()) and torch.equal(second, first + count):
                return axis
    return None
