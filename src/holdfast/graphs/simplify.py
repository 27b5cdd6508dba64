"""Merges neighbouring affine nodes so that bounds have fewer steps to walk.

Merges multiply in float64. A merge that only adds a constant to a zero bias rounds nothing; others
may, and then ``Graph.exact`` becomes False.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Operator
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.reshape import Reshape
from holdfast.graphs.operators.scale import Scale

Rule = Callable[[Node, Node], "Operator | None"]


def simplify(graph: Graph, rounding: bool = True) -> Graph:
    """Merges pairs of nodes until none fits; with ``rounding=False`` only exactly."""
    rules: list[tuple[Rule, bool]] = [(_bias, True)]
    if rounding:
        rules += [
            (_scale_after_linear, False),
            (_scale_after_conv, False),
            (_scale_before_linear, False),
        ]
    changed = True
    while changed:
        graph, changed = _swap_reshape(graph) if rounding else (graph, False)
        graph, merged = _merge_once(graph, rules)
        changed = changed or merged
    return graph


def _merge_once(graph: Graph, rules: list[tuple[Rule, bool]]) -> tuple[Graph, bool]:
    readers = graph.readers()
    for second in graph.nodes[1:]:
        if len(second.inputs) != 1 or second.inputs[0] == 0:
            continue
        first = graph.nodes[second.inputs[0]]
        if len(readers[first.index]) != 1 or len(first.inputs) != 1:
            continue
        for rule, exact in rules:
            op = rule(first, second)
            if op is not None:
                merged = replace(second, op=op, inputs=first.inputs)
                return _without(graph, first.index, merged, exact), True
    return graph, False


def _without(graph: Graph, gone: int, merged: Node, exact: bool) -> Graph:
    nodes = []
    for node in graph.nodes:
        if node.index == gone:
            continue
        node = merged if node.index == merged.index else node
        inputs = tuple(i - (i > gone) for i in node.inputs)
        nodes.append(replace(node, index=node.index - (node.index > gone), inputs=inputs))
    return Graph(tuple(nodes), graph.exact and exact)


def _swap_reshape(graph: Graph) -> tuple[Graph, bool]:
    """A scale followed by a reshape becomes a reshape followed by a scale."""
    readers = graph.readers()
    for second in graph.nodes[1:]:
        if not isinstance(second.op, Reshape) or second.inputs[0] == 0:
            continue
        first = graph.nodes[second.inputs[0]]
        if not isinstance(first.op, Scale) or len(readers[first.index]) != 1:
            continue
        constants = [
            c.expand(first.shape).reshape(second.shape) for c in (first.op.factor, first.op.offset)
        ]
        nodes = list(graph.nodes)
        nodes[first.index] = replace(first, op=second.op, shape=second.shape)
        nodes[second.index] = replace(second, op=Scale(*constants))
        return replace(graph, nodes=tuple(nodes)), True
    return graph, False


def _bias(first: Node, second: Node) -> Operator | None:
    """``Linear`` without bias, then an added constant."""
    if not (isinstance(first.op, Linear) and isinstance(second.op, Scale)):
        return None
    if (
        first.shape != second.shape
        or bool(first.op.bias.any())
        or bool((second.op.factor != 1).any())
    ):
        return None
    offset = _per_channel(second.op.offset, second.shape, -1)
    return None if offset is None else replace(first.op, bias=offset.to(first.op.weight.dtype))


def _scale_after_linear(first: Node, second: Node) -> Operator | None:
    if (
        not (isinstance(first.op, Linear) and isinstance(second.op, Scale))
        or first.shape != second.shape
    ):
        return None
    factor, offset = (
        _per_channel(c, second.shape, -1) for c in (second.op.factor, second.op.offset)
    )
    if factor is None or offset is None:
        return None
    factor, offset = factor.double(), offset.double()
    return Linear(
        first.op.weight.double() * factor[:, None], first.op.bias.double() * factor + offset
    )


def _scale_after_conv(first: Node, second: Node) -> Operator | None:
    if (
        not (isinstance(first.op, Conv) and isinstance(second.op, Scale))
        or first.shape != second.shape
    ):
        return None
    factor, offset = (
        _per_channel(c, second.shape, 0) for c in (second.op.factor, second.op.offset)
    )
    if factor is None or offset is None:
        return None
    factor, offset = factor.double(), offset.double()
    shape = (-1, *[1] * (first.op.weight.dim() - 1))
    weight = first.op.weight.double() * factor.reshape(shape)
    return replace(first.op, weight=weight, bias=first.op.bias.double() * factor + offset)


def _scale_before_linear(first: Node, second: Node) -> Operator | None:
    if not (isinstance(first.op, Scale) and isinstance(second.op, Linear)):
        return None
    factor, offset = (_per_channel(c, first.shape, -1) for c in (first.op.factor, first.op.offset))
    if factor is None or offset is None:
        return None
    weight = second.op.weight.double()
    return Linear(weight * factor.double(), second.op.bias.double() + weight @ offset.double())


def _per_channel(constant: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """The constant as one value per channel, or None where it differs within a channel."""
    full = constant.expand(shape).movedim(axis, 0).reshape(shape[axis], -1)
    first = full[:, :1]
    return first[:, 0].contiguous() if torch.equal(full, first.expand_as(full)) else None
