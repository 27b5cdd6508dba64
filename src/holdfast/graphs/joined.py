"""Several networks as one graph: inputs side by side in one vector, outputs one after another.

Whoever bounds, splits or attacks the joined graph needs to know nothing of its parts. Steps that
two networks share, the same operator with the same weights on the same values, are computed once,
so that relations between networks with common layers are not lost in two separate relaxations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from holdfast.graphs.builder import Builder, Ref
from holdfast.graphs.errors import GraphError
from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.onnx_reader import free_inputs, read_into, sample_shape
from holdfast.graphs.operators.add import Add
from holdfast.graphs.operators.concat import Concat
from holdfast.graphs.operators.reshape import Reshape
from holdfast.graphs.operators.take import Take
from holdfast.graphs.simplify import simplify

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


@final
@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where one input of a network comes from: ``joined[base]``, plus ``joined[shift]`` if >= 0.

    Attributes:
        shape: Its declared shape, with the batch axis.
        base: Positions in the joined input ``(size,)``.
        shift: Positions of what is added ``(size,)``, -1 for nothing.
    """

    shape: tuple[int, ...]
    base: Tensor
    shift: Tensor


@final
@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One network of a joined graph.

    Attributes:
        name: For messages.
        model: The network.
        slots: Its inputs, in the order of the model.
        sizes: Elements of every value that counts as an output.
        hidden: Names of inner values that do, before the model's own outputs.
    """

    name: str
    model: ModelProto
    slots: tuple[Slot, ...]
    sizes: tuple[int, ...]
    hidden: tuple[str, ...] = ()


def join(parts: Sequence[Part], size: int) -> Graph:
    """One graph of ``size`` inputs that ends in all outputs of all parts, ``(outputs,)``.

    Raises:
        GraphError: A network cannot be read, or has other inputs or outputs than declared.
        UnsupportedOperatorError: An operator has no bounds here.
    """
    builder = Builder((size,))
    ends = [end for part in parts for end in _append(builder, part)]
    flat = [_shaped(builder, end, (torch.Size(end.shape).numel(),), "output") for end in ends]
    output = flat[0] if len(flat) == 1 else builder.emit(Concat(0), *flat, place="outputs")
    return simplify(shared(builder.graph(output)), rounding=False)


def _append(builder: Builder, part: Part) -> list[Ref]:
    infos = free_inputs(part.model.graph)
    if len(infos) != len(part.slots):
        raise GraphError(
            f"network {part.name!r} has {len(infos)} inputs {[i.name for i in infos]}, "
            f"{len(part.slots)} are declared"
        )
    inputs = {
        info.name: _feed(builder, part.name, info, slot)
        for info, slot in zip(infos, part.slots, strict=True)
    }
    wanted = [*part.hidden, *(o.name for o in part.model.graph.output)]
    ends = read_into(builder, part.model, inputs, wanted)
    sizes = [torch.Size(end.shape).numel() for end in ends]
    if sizes != list(part.sizes):
        raise GraphError(
            f"the values {wanted} of network {part.name!r} have {sizes} elements, "
            f"{list(part.sizes)} are declared"
        )
    return ends


def _feed(builder: Builder, name: str, info: ValueInfoProto, slot: Slot) -> Ref:
    shape, place = sample_shape(info, slot.shape), f"{name}.{info.name}"
    if torch.Size(shape).numel() != len(slot.base):
        raise GraphError(
            f"input {info.name!r} of network {name!r} has shape {shape} and "
            f"{torch.Size(shape).numel()} elements, {len(slot.base)} are declared"
        )
    joined = Ref(0, builder.nodes[0].shape)
    if torch.equal(slot.base, torch.arange(*joined.shape)) and bool((slot.shift < 0).all()):
        return _shaped(builder, joined, shape, place)
    base = builder.emit(Take(slot.base.reshape(shape)), joined, place=place)
    if bool((slot.shift < 0).all()):
        return base
    shift = builder.emit(Take(slot.shift.reshape(shape)), joined, place=place)
    return builder.emit(Add(), base, shift, place=place)


def _shaped(builder: Builder, ref: Ref, shape: tuple[int, ...], place: str) -> Ref:
    return ref if ref.shape == shape else builder.emit(Reshape(shape), ref, place=place)


def shared(graph: Graph) -> Graph:
    """The graph with equal nodes, the same operator on the same values, merged into one.

    Its output has to need every node: then the last one left is the output.
    """
    merged: dict[Any, int] = {}
    position: list[int] = []
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(position[i] for i in node.inputs)
        key = (_fingerprint(node.op), inputs, node.shape) if node.inputs else node.index
        if key not in merged:
            merged[key] = len(nodes)
            nodes.append(replace(node, index=len(nodes), inputs=inputs))
        position.append(merged[key])
    return Graph(tuple(nodes), graph.exact)


def _fingerprint(value: Any) -> Any:
    """Something hashable that is equal for equal operators, weights included."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        digest = hashlib.sha256(data.flatten().view(torch.uint8).numpy().tobytes()).digest()
        return str(data.dtype), tuple(data.shape), digest
    if is_dataclass(value):
        return type(value), *(_fingerprint(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, (list, tuple)):
        return type(value), *map(_fingerprint, value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
