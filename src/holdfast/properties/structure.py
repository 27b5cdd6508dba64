"""Whether two networks have the same structure: VNN-LIB 2.0's ``isomorphic-to``.

The standard asks for the same graph with other weights: the same operators with the same settings,
wired alike, and weights of equal shapes. Values and element types may differ, and so may names and
the order of nodes in the file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.graphs.onnx_reader import free_inputs

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

_SYMMETRIC = ("Add", "Mul", "Max", "Min", "Sum")
"""Operators whose operands may change places."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A graph without its weights.

    Attributes:
        nodes: How often each kind of node stands in it; a kind knows all that the node reads.
        outputs: The kinds of the outputs, in order.
        operators: How often each operator stands in it, for messages.
    """

    nodes: Counter[int]
    outputs: tuple[int, ...]
    operators: Counter[str]

    @classmethod
    def of(cls, graph: GraphProto) -> Structure:
        """The structure of an ONNX graph."""
        kinds = {t.name: hash(("weight", tuple(t.dims))) for t in graph.initializer}
        kinds |= {value.name: hash(("input", i)) for i, value in enumerate(free_inputs(graph))}
        nodes: Counter[int] = Counter()
        operators: Counter[str] = Counter()
        for node in graph.node:
            kind = _kind(node, kinds)
            kinds |= {name: hash((kind, i)) for i, name in enumerate(node.output)}
            if node.op_type != "Constant":
                nodes[kind] += 1
                operators[node.op_type] += 1
        return cls(nodes, tuple(kinds.get(o.name, 0) for o in graph.output), operators)

    def difference(self, other: Structure) -> str:
        """In words what tells it from another; empty where nothing does."""
        if self == other:
            return ""
        counts = [f"{self.operators[name]} and {other.operators[name]} {name}"
                  for name in sorted(self.operators | other.operators)
                  if self.operators[name] != other.operators[name]]  # fmt: skip
        if counts:
            return f"they have {', '.join(counts)}"
        return "their operators differ in settings, in wiring, or in the shapes of weights"


def _kind(node: NodeProto, kinds: dict[str, int]) -> int:
    if node.op_type == "Constant":
        (value,) = node.attribute
        return hash(("weight", tuple(value.t.dims)))
    sources = [kinds.get(name, 0) for name in node.input]
    if node.op_type in _SYMMETRIC:
        sources.sort()
    settings = sorted((a.name, _setting(a)) for a in node.attribute)
    return hash((node.domain, node.op_type, tuple(settings), tuple(sources), len(node.output)))


def _setting(attribute: Any) -> str:
    """Whole numbers and words; real numbers and tensors count as weights."""
    return str((attribute.i, list(attribute.ints), attribute.s, list(attribute.strings)))
