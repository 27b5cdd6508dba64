"""CROWN: linear bounds pulled backward (Zhang et al., 2018, arXiv:1811.00866).

From coefficients ``A`` of the value of one node, every operator gives coefficients of its inputs
with ``A . value >= A' . inputs + c``, until the network's input is reached and the
region decides. In floating point the exact inequality needs a correction: if ``A'`` is a rounded ``A W``,
then ``A W z = A' z + (A W - A') z`` and the last part is at most ``gamma |A| |W| |z|``. Operators
bound ``|W| |z| + |b|`` by ``magnitude``; the sum over all steps is the error term subtracted here
(Higham, 2002, section 3.1, for ``gamma_n = n u / (1 - n u)``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box, dot
from holdfast.verifiers.regions import Region


@final
@dataclass(slots=True)
class State:
    """What is known about every node over a region: boxes, and magnitudes for rounding."""

    boxes: list[Box] = field(default_factory=list)
    magnitudes: list[Tensor] = field(default_factory=list)

    def rows(self, index: Tensor | slice) -> State:
        """The samples at ``index``."""
        boxes = [Box(b.lower[index], b.upper[index]) for b in self.boxes]
        return State(boxes, [m[index] for m in self.magnitudes])


class Cuts(NamedTuple):
    """Constraints ``sign (z[index] - point) >= 0`` on one node's value, each ``(n, s)``.

    Unused places have sign 0.
    """

    index: Tensor
    sign: Tensor
    point: Tensor


class LinearBound(NamedTuple):
    """``expression >= A . x + constant``; ``A (n, k, *input)``, ``constant (n, k)``."""

    A: Tensor
    constant: Tensor
    watched: dict[int, Tensor]


def gamma(graph: Graph, dtype: torch.dtype) -> float:
    """Relative rounding error of any sum formed while pulling bounds through ``graph``."""
    count = 2 * max(node.size for node in graph.nodes) + 64
    unit = torch.finfo(dtype).eps / 2
    return count * unit / (1 - count * unit)


def pull_back(
    graph: Graph,
    start: int,
    A: Tensor,
    state: State,
    *,
    parameters: Mapping[int, Tensor] | None = None,
    cuts: Mapping[int, Cuts] | None = None,
    multipliers: Mapping[int, Tensor] | None = None,
    watch: frozenset[int] = frozenset(),
    rounding: bool = True,
) -> LinearBound:
    """Lower linear bounds of ``A . value(start)`` in the network's input.

    Args:
        graph: The network.
        start: Node whose value is bounded.
        A: Coefficients ``(n, k, *start.shape)``.
        state: Boxes of all nodes before ``start``.
        parameters: Free choices of relaxations by node, ``(q, n, k or 1, *input of node)``.
        cuts: Constraints on values by node.
        multipliers: A multiplier >= 0 per cut, ``(n, s)`` by node.
        watch: Nodes whose coefficients are returned.
        rounding: Subtract the bound of rounding errors.
    """
    parameters, cuts, multipliers = parameters or {}, cuts or {}, multipliers or {}
    pending = {start: A}
    total = A.new_zeros(A.shape[:2])
    error = gamma(graph, A.dtype)
    watched = {}
    for node in reversed(graph.nodes[: start + 1]):
        A_node = pending.pop(node.index, None)
        if A_node is None:
            continue
        if node.index in cuts and node.index in multipliers:
            A_node, constant = _apply_cuts(A_node, cuts[node.index], multipliers[node.index])
            total = total + constant
        if node.index in watch:
            watched[node.index] = A_node
        if rounding:
            total = total - 2 * error * dot(A_node.abs(), state.magnitudes[node.index].unsqueeze(1))
        if node.index == 0:
            return LinearBound(A_node, total, watched)
        boxes = [state.boxes[i] for i in node.inputs]
        pulled = node.op.pull(A_node, boxes, parameters.get(node.index))
        if pulled.constant is not None:
            total = total + pulled.constant
        for i, part in zip(node.inputs, pulled.coefficients, strict=True):
            pending[i] = pending[i] + part if i in pending else part
    shape = (*A.shape[:2], *graph.input_shape)
    return LinearBound(A.new_zeros(shape), total, watched)


def _apply_cuts(A: Tensor, cuts: Cuts, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Adds ``- multiplier sign (z - point)``, which is at most 0 where the constraints hold."""
    weight = (-cuts.sign * multipliers).unsqueeze(1).expand(-1, A.shape[1], -1)
    index = cuts.index.unsqueeze(1).expand_as(weight)
    flat = A.flatten(2).scatter_add(2, index, weight)
    constant = (cuts.sign * multipliers * cuts.point).sum(1, keepdim=True)
    return flat.reshape(A.shape), constant


def lower_bound(graph: Graph, start: int, A: Tensor, state: State, region: Region, rounding: bool = True,
                parameters: Mapping[int, Tensor] | None = None) -> Tensor:
    """Lower bounds ``(n, k)`` of ``A . value(start)`` over the region."""
    bound = pull_back(graph, start, A, state, parameters=parameters, rounding=rounding)
    return region.minimum(bound.A) + bound.constant
