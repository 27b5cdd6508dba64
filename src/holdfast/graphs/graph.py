"""A small typed graph: nodes in topological order, run with or without gradients."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.errors import GraphError
from holdfast.graphs.operator import Box, Operator, Pulled


@final
@dataclass(frozen=True, slots=True)
class Input(Operator):
    """The input of the network; runs to itself."""

    def run(self, *xs: Tensor) -> Tensor:
        """The input itself."""
        return xs[0]

    def interval(self, *boxes: Box) -> Box:
        """The input's own box."""
        return boxes[0]

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Coefficients stay as they are."""
        return Pulled((A,), None)

    def magnitude(self, *boxes: Box) -> Tensor:
        """Largest absolute input."""
        return boxes[0].magnitude()


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to earlier nodes.

    Attributes:
        index: Position in the graph.
        place: Name in the model it came from, for messages.
        op: The operator with its weights.
        inputs: Positions of the nodes it reads.
        shape: Shape of its value without the batch axis.
    """

    index: int
    place: str
    op: Operator
    inputs: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements per sample."""
        return torch.Size(self.shape).numel()


@final
@dataclass(frozen=True, slots=True)
class Graph:
    """A network with one input (node 0) and one output (the last node).

    Attributes:
        nodes: All nodes, each after those it reads.
        exact: False when simplification rounded a weight.
    """

    nodes: tuple[Node, ...]
    exact: bool = True

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output, without the batch axis."""
        return self.nodes[-1].shape

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs ``(n, *output_shape)`` of ``x (n, *input_shape)``; differentiable."""
        return self.values(x)[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """Values of all nodes, ``(n, *node.shape)`` each."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise GraphError(f"input has shape {tuple(x.shape)}; expected (n, *{self.input_shape})")
        values = [x]
        for node in self.nodes[1:]:
            values.append(node.op.run(*(values[i] for i in node.inputs)))
        return values

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Graph:
        """The graph with its weights in another precision or on another device."""
        nodes = tuple(replace(n, op=n.op.to(dtype, device)) for n in self.nodes)
        return replace(self, nodes=nodes)

    def readers(self) -> list[list[int]]:
        """For every node, the nodes that read its value."""
        lists: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in node.inputs:
                lists[i].append(node.index)
        return lists
