"""Interval bounds of a specification, its rows merged with the affine layers before it.

Intervals of every logit forget that all come from the same features. Pulling the rows through the
last affine layers first, which loses nothing, and taking the interval there is never looser
(Gowal et al., 2018, arXiv:1810.12715, section 3, "elision").
"""
# ruff: noqa: N803, N806 - A and C are the matrices of the literature

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import State, gamma
from holdfast.verifiers.regions import BoxRegion, Region


def elided(graph: Graph, region: Region, state: State, A: Tensor, rounding: bool = True) -> Tensor:
    """Lower bounds ``(n, k)`` of ``A . output`` from the boxes before the last affine layers.

    Args:
        graph: The network.
        region: Inputs.
        state: Boxes of all nodes.
        A: Coefficients ``(n, k, *output)``.
        rounding: Subtract the bound of rounding errors.
    """
    node = graph.nodes[-1]
    constant, unit = A.new_zeros(A.shape[:2]), 2 * gamma(graph, A.dtype)
    while True:
        magnitude = state.magnitudes[node.index] if rounding else None
        if magnitude is not None:
            constant = constant - unit * magnitude * flattened(A, 2).abs().sum(2)
        if node.index == 0 or not node.op.is_affine or len(node.inputs) != 1:
            break
        pulled = node.op.pull(A, [state.boxes[node.inputs[0]]])
        if pulled.constant is not None:
            constant = constant + pulled.constant
        A, node = pulled.coefficients[0], graph.nodes[node.inputs[0]]
    if node.index == 0:
        return region.minimum(A) + constant
    box = state.boxes[node.index]
    if rounding:
        # The interval's own sum, whose terms are no larger than these.
        largest = flattened(box.magnitude()).amax(1, keepdim=True)
        constant = constant - unit * torch.nan_to_num(largest) * flattened(A, 2).abs().sum(2)
    return BoxRegion(box.lower, box.upper).minimum(A) + constant
