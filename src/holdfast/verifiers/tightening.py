"""Bounds of all values again, over the part of the inputs that a domain still has.

Splits and halfspaces leave less of the box; bounds from the root then hold more than is possible.
Bounding everything again costs as much as many domains, so it is done for few of them and their
descendants share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.alpha_crown import replace_boxes
from holdfast.verifiers.crown import LinearBound, State, two_sided
from holdfast.verifiers.domains import Batch, Shifted
from holdfast.verifiers.halfspace import CutBox
from holdfast.verifiers.propagation import loose_for, padded_index, plan_refinement
from holdfast.verifiers.regions import BoxRegion, Region

# Elements of the largest coefficient tensor handled at once.
CHUNK = 1 << 20


@torch.no_grad()
def tighten(graph: Graph, state: State, region: Region) -> tuple[State, Tensor]:
    """Boxes cut with bounds over the region, in the state's precision and with rounding.

    Args:
        graph: The network in float64.
        state: Boxes known to hold ``(n, ...)``, for instance those of a larger region with the
            ranges of split neurons cut.
        region: The inputs left.

    Returns:
        The new state, and where a box became empty ``(n,)``: nothing is left of that domain.
    """
    boxes = list(state.boxes)
    empty = torch.zeros(len(boxes[0].lower), dtype=torch.bool)
    for node, readers in zip(graph.nodes, plan_refinement(graph, region.is_box), strict=True):
        if not readers:
            continue
        state = replace_boxes(graph, state, boxes)
        box = state.boxes[node.index]
        loose = loose_for(readers, box)
        lower, upper = flattened(box.lower), flattened(box.upper)
        index = padded_index(loose)
        widest = max(n.size for n in graph.nodes[: node.index + 1])
        step = max(1, CHUNK // (2 * max(1, len(index)) * widest))
        for part in index.split(step, 1) if index.shape[1] else ():
            unit = torch.zeros(*part.shape, node.size, dtype=lower.dtype)
            unit = unit.scatter(2, part.unsqueeze(2), 1.0).reshape(*part.shape, *node.shape)
            low, high = two_sided(graph, node.index, unit, state, region)
            lower = lower.scatter(1, part, torch.fmax(lower.gather(1, part), low))
            upper = upper.scatter(1, part, torch.fmin(upper.gather(1, part), high))
        empty |= (lower > upper).any(1)
        shape = box.lower.shape
        boxes[node.index] = Box(
            torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
        )
    return replace_boxes(graph, state, boxes), empty


def cost(graph: Graph, state: State) -> float:
    """Multiplications that ``tighten`` takes, about, for the boxes that it gives."""
    sources = {i for k in graph.nodes if not k.op.is_affine for i in k.inputs}
    total = passed = 0.0
    for node in graph.nodes:
        op = node.op
        passed += node.size * (op.weight[0].numel() if isinstance(op, (Linear, Conv)) else 1)
        if node.index in sources:
            box = state.boxes[node.index]
            total += 2 * int(((box.lower < 0) & (box.upper > 0)).sum()) * passed
    return total


def left(batch: Batch, bound: LinearBound) -> Region:
    """The inputs where the domains could be violated; of balls that is not told apart."""
    region = batch.region
    if not isinstance(region, BoxRegion):
        return region
    h, g = _halfspace(batch, bound)
    if bool((-region.minimum(-h.unsqueeze(1))[:, 0] + g <= 0).all()):
        return region
    return CutBox(region.lower, region.upper, h, g)


def _halfspace(batch: Batch, bound: LinearBound) -> tuple[Tensor, Tensor]:
    """``h (n, *input)`` and ``g (n,)`` with ``row >= h . x + g`` on each domain, rounding paid."""
    h = Shifted(batch.region, batch.D, batch.d).full(bound.A)[:, 0]
    constant = (bound.constant + batch.d)[:, 0]
    most = torch.maximum(batch.region.lower.abs(), batch.region.upper.abs())
    size = flattened(h.abs() * most).sum(1) + bound.constant[:, 0].abs() + batch.d[:, 0].abs()
    if batch.D is not None:
        size = size + flattened(batch.D.reshape(h.shape).abs() * most).sum(1)
    return h, constant - 8 * torch.finfo(size.dtype).eps * size
