"""CROWN: linear bounds pulled backward (Zhang et al., 2018, arXiv:1811.00866).

From coefficients ``A`` of the value of one node, every operator gives coefficients of its inputs
with ``A . value >= A' . inputs + c``, until the network's input is reached and the
region decides. In floating point the exact inequality needs a correction: if ``A'`` is a rounded
``A W``, then ``A W z = A' z + (A W - A') z`` and the last part is at most ``gamma |A| |W| |z|``.
Operators bound ``|W| |z| + |b|`` by ``magnitude``; ``||A||_1`` times its largest element, summed
over all steps, is the error term subtracted here (Higham, 2002, section 3.1, for ``gamma_n = n u /
(1 - n u)``).
"""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Activation, Box, Lines, Pulled, pull_lines
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.regions import Region


@final
@dataclass(slots=True)
class State:
    """What is known about every node over a region.

    Attributes:
        boxes: Bounds of its value.
        magnitudes: Largest magnitude behind one of its elements ``(n, 1)``, which scales rounding
            errors; None where nothing is rounded.
        lines: Default relaxations of activations, kept once they were needed: a node's box is
            final when something after it is bounded.
    """

    boxes: list[Box] = field(default_factory=list)
    magnitudes: list[Tensor | None] = field(default_factory=list)
    lines: dict[int, Lines] = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether rounding errors are charged."""
        return bool(self.magnitudes)

    def relaxed(self, node: Node, op: Activation) -> Lines:
        """The default lines of an activation over the box of its input."""
        if node.index not in self.lines:
            box = self.boxes[node.inputs[0]]
            found = op.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), None)
            self.lines[node.index] = found
        return self.lines[node.index]

    def rows(self, index: Tensor | slice) -> State:
        """The samples at ``index``."""
        boxes = [Box(b.lower[index], b.upper[index]) for b in self.boxes]
        return State(boxes, [None if m is None else m[index] for m in self.magnitudes])


class Cuts(NamedTuple):
    """Constraints ``sign (z[neuron] - point) >= 0`` on one node's value, each ``(n, s)``.

    Unused places have sign 0.
    """

    neuron: Tensor
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
    mirrored: bool = False,
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
        mirrored: Bound ``-A . value(start)`` too, as rows ``k`` to ``2 k - 1``.
    """
    parameters, cuts, multipliers = parameters or {}, cuts or {}, multipliers or {}
    pending = {start: A}
    constant, error = A.new_zeros(A.shape[:2]), A.new_zeros(A.shape[:2])
    unit = 2 * gamma(graph, A.dtype)
    watched: dict[int, Tensor] = {}
    for node in reversed(graph.nodes[: start + 1]):
        if node.index not in pending:
            continue
        if mirrored and (node.index == 0 or not node.op.is_affine):
            # Up to here both directions have the same coefficients but for the sign.
            pending = {i: torch.cat([P, -P], 1) for i, P in pending.items()}
            constant, error = torch.cat([constant, -constant], 1), torch.cat([error] * 2, 1)
            mirrored = False
        A = pending.pop(node.index)
        if node.index in cuts and node.index in multipliers:
            A, shift = _apply_cuts(A, cuts[node.index], multipliers[node.index])
            constant = constant + shift
        if node.index in watch:
            watched[node.index] = A
        magnitude = state.magnitudes[node.index] if rounding else None
        if magnitude is not None:
            error = error + unit * magnitude * absolute_sum(A)
        if node.index == 0:
            break
        pulled = _pulled(node, A, state, parameters.get(node.index))
        if pulled.constant is not None:
            constant = constant + pulled.constant
        for i, part in zip(node.inputs, pulled.coefficients, strict=True):
            if i in pending and rounding:
                # Errors left to node i refer to each part, while their sum may cancel.
                left = absolute_sum(pending[i]) + absolute_sum(part)
                error = error + unit * scale_of(state, i) * left
            pending[i] = pending[i] + part if i in pending else part
    return LinearBound(A, constant - error, watched)


def _pulled(node: Node, A: Tensor, state: State, parameters: Tensor | None) -> Pulled:
    """The coefficients before ``node``; default lines of an activation are kept in the state."""
    if isinstance(node.op, Activation) and parameters is None:
        return pull_lines(A, state.relaxed(node, node.op))
    return node.op.pull(A, [state.boxes[i] for i in node.inputs], parameters)


def absolute_sum(A: Tensor) -> Tensor:
    """At least the sum of absolute coefficients of every row: ``(n, k, *shape) -> (n, k)``.

    Errors are charged by it, so that the root of the size times the l2 norm will do, which takes a
    third of the time or less. Squares that underflow belong to coefficients below ``tiny``.
    """
    flat = flattened(A, 2)
    size, tiny = flat.shape[2], torch.finfo(A.dtype).tiny ** 0.5
    return torch.linalg.vector_norm(flat, 2, 2) * size**0.5 + size * tiny


def scale_of(state: State, node: int) -> Tensor:
    """The node's magnitude, at least that of its value, ``(n, 1)``."""
    magnitude = state.magnitudes[node]
    if magnitude is not None:
        return magnitude
    return flattened(state.boxes[node].magnitude()).amax(1, keepdim=True)


def _apply_cuts(A: Tensor, cuts: Cuts, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Adds ``- multiplier sign (z - point)``, which is at most 0 where the constraints hold."""
    weight = (-cuts.sign * multipliers).unsqueeze(1).expand(-1, A.shape[1], -1)
    index = cuts.neuron.unsqueeze(1).expand_as(weight)
    flat = flattened(A, 2).scatter_add(2, index, weight)
    constant = (cuts.sign * multipliers * cuts.point).sum(1, keepdim=True)
    return flat.reshape(A.shape), constant


def two_sided(
    graph: Graph, start: int, A: Tensor, state: State, region: Region, rounding: bool = True
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds ``(n, k)`` of ``A . value(start)`` over the region."""
    k = A.shape[1]
    bound = pull_back(graph, start, A, state, rounding=rounding, mirrored=True)
    value = region.minimum(bound.A) + bound.constant
    return value[:, :k], -value[:, k:]
