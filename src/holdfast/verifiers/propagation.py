"""Boxes of every node: intervals forward, sharpened backward where that helps.

``"interval"`` propagates intervals alone (Gowal et al., 2018, arXiv:1810.12715). ``"crown"``
pulls linear bounds back from the inputs of every non-linear node, but only for elements whose
relaxation is not exact yet, and propagates what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Activation, Box, Operator
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import State, gamma, two_sided
from holdfast.verifiers.elements import Elements
from holdfast.verifiers.regions import Region

Method = Literal["interval", "crown"]
# Elements of the largest coefficient tensor handled at once; keeps a pass within caches and memory.
CHUNK = 1 << 18


def propagate(
    graph: Graph,
    region: Region,
    method: Method = "crown",
    known: Sequence[Box] | None = None,
    rounding: bool = True,
) -> State:
    """Boxes that contain every value each node can take over the region.

    Args:
        graph: The network, in the precision of the region.
        region: Inputs.
        method: How far to go.
        known: Boxes known to hold already, for instance of a larger region; results are cut with
        them.
        rounding: Widen by the bound of rounding errors.
    """
    state = State()
    plan = plan_refinement(graph, region.is_box)
    for node in graph.nodes:
        box = _interval(graph, node, state, region, rounding)
        if known is not None:
            box = box.intersect(known[node.index])
        state.boxes.append(box)
        if method == "crown" and plan[node.index]:
            readers = [graph.nodes[j].op for j in plan[node.index]]
            state.boxes[-1] = refine(graph, node, readers, state, region, rounding)
    return state


def _interval(graph: Graph, node: Node, state: State, region: Region, rounding: bool) -> Box:
    boxes = [state.boxes[i] for i in node.inputs] if node.inputs else [region.hull()]
    box = node.op.interval(*boxes)
    if rounding:
        magnitude = node.op.magnitude(*boxes)
        largest = None if magnitude is None else flattened(magnitude).amax(1, keepdim=True)
        state.magnitudes.append(largest)
        if magnitude is not None and node.op.rounds and node.inputs:
            low, high = node.op.wobble(boxes, box, magnitude)
            unit = 2 * gamma(graph, box.lower.dtype)
            box = Box(box.lower - unit * low, box.upper + unit * high)
        # Overflow leaves no number; nothing is known then, and nothing may be concluded. Without
        # regard to rounding nothing is proven anyway, and training need not pay for the look.
        box = Box(
            box.lower.nan_to_num(-torch.inf, torch.inf, -torch.inf),
            box.upper.nan_to_num(torch.inf, torch.inf, -torch.inf),
        )
    return box


def plan_refinement(graph: Graph, is_box: bool) -> list[list[int]]:
    """For every node, its non-linear readers, or nothing where intervals are exact already."""
    readers = graph.readers()
    # Elements vary independently in a box; one affine step from there loses nothing.
    independent = [is_box] + [False] * (len(graph.nodes) - 1)
    plan: list[list[int]] = []
    for node in graph.nodes:
        single = len(node.inputs) == 1 and node.op.is_affine and independent[node.inputs[0]]
        if node.inputs:
            independent[node.index] = single and node.op.is_diagonal
        exact = not node.inputs or single
        wanted = [
            j
            for j in readers[node.index]
            if not graph.nodes[j].op.is_affine or graph.nodes[j].op.refines_input
        ]
        plan.append([] if exact or node.op.refines_input else wanted)
    return plan


def padded_index(mask: Tensor) -> Tensor:
    """Positions where ``mask (n, size)`` holds, ``(n, most)``; short rows add others."""
    most = int(mask.sum(1).max()) if mask.numel() else 0
    order = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices
    return order[:, :most]


def refine(
    graph: Graph,
    node: Node,
    readers: Sequence[Operator],
    state: State,
    region: Region,
    rounding: bool = True,
) -> Box:
    """The node's box with the elements bounded backward that ``readers`` relax with a loss."""
    box = state.boxes[node.index]
    loose = flattened(torch.stack([op.is_loose(box) for op in readers]).any(0))
    stops = all(isinstance(op, Activation) and op.is_rectifier for op in readers)
    plain = all(n.op.is_affine or n.op.is_diagonal for n in graph.nodes[1 : node.index + 1])
    if not (stops or (plain and len(node.shape) > 1)):
        return _refined_together(graph, node, state, region, loose, rounding)

    def settled(low: Tensor, high: Tensor) -> Tensor:
        return ~torch.stack([op.is_loose(Box(low, high)) for op in readers]).any(0)

    pairs = loose.nonzero()
    if not len(pairs):
        return box
    elements = Elements(graph, node.index, state, region, settled if stops else None, rounding)
    low, high = elements.bounds(pairs)
    at = (pairs[:, 0], pairs[:, 1])
    lower = flattened(box.lower).index_put(at, low).reshape(box.lower.shape)
    upper = flattened(box.upper).index_put(at, high).reshape(box.upper.shape)
    return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))


def _refined_together(
    graph: Graph, node: Node, state: State, region: Region, loose: Tensor, rounding: bool
) -> Box:
    """The same with as many rows for every sample, which relaxations of pairs prefer."""
    box = state.boxes[node.index]
    index = padded_index(loose)
    widest = max(n.size for n in graph.nodes[: node.index + 1])
    step = max(1, CHUNK // (2 * len(index) * widest))
    lower, upper = flattened(box.lower), flattened(box.upper)
    for part in index.split(step, 1) if index.shape[1] else ():
        unit = torch.zeros(
            len(part), part.shape[1], node.size, dtype=lower.dtype, device=lower.device
        )
        unit = unit.scatter(2, part.unsqueeze(2), 1.0).reshape(*part.shape, *node.shape)
        low, high = two_sided(graph, node.index, unit, state, region, rounding)
        lower = lower.scatter(1, part, torch.fmax(lower.gather(1, part), low))
        upper = upper.scatter(1, part, torch.fmin(upper.gather(1, part), high))
    shape = box.lower.shape
    return Box(
        torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
    )
