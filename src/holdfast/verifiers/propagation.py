"""Boxes of every node: intervals forward, sharpened backward where that helps.

``"interval"`` propagates intervals alone (Gowal et al., 2018, arXiv:1810.12715). ``"crown"``
pulls linear bounds back from the inputs of every non-linear node, but only for elements whose
relaxation is not exact yet, and propagates what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

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
CHUNK = 1 << 19
CROWD, FEW = 8, 64
"""Least number of samples that are bounded together, and most rows of each.

With more rows, products for one sample are fast enough, and single rows end sooner.
"""
CROWDED = 0.25
"""Least share of these rows that are needed."""


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
            state.boxes[-1] = refine(graph, node, plan[node.index], state, region, rounding)
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


@final
@dataclass(frozen=True, slots=True)
class Reader:
    """A non-linear operator that reads a value, perhaps through elementwise operators.

    Attributes:
        op: The operator, relaxed with a loss.
        path: The elementwise operators between the value and it, in order.
    """

    op: Operator
    path: tuple[Operator, ...] = ()

    def is_loose(self, box: Box) -> Tensor:
        """Where tighter bounds of the value would help, a mask like ``box.lower``."""
        for op in self.path:
            box = op.interval(box)
        return self.op.is_loose(box)


def loose_for(readers: Sequence[Reader], box: Box) -> Tensor:
    """Elements ``(n, size)`` of a value that a reader relaxes with a loss."""
    return flattened(torch.stack([reader.is_loose(box) for reader in readers]).any(0))


def plan_refinement(graph: Graph, is_box: bool) -> list[list[Reader]]:
    """For every node, its non-linear readers, or nothing where intervals are exact already.

    The range of an elementwise operator follows from that of its input, and no linear bound of its
    output says more. So the input is refined for those who read the output.
    """
    direct = graph.readers()
    # Elements vary independently in a box; one affine step from there loses nothing.
    independent = [is_box] + [False] * (len(graph.nodes) - 1)
    plan: list[list[Reader]] = []
    for node in graph.nodes:
        single = len(node.inputs) == 1 and node.op.is_affine and independent[node.inputs[0]]
        if node.inputs:
            independent[node.index] = single and node.op.is_diagonal
        exact = not node.inputs or single
        skip = exact or isinstance(node.op, Activation)
        plan.append([] if skip else _readers(graph, direct, node.index, ()))
    return plan


def _readers(
    graph: Graph, direct: list[list[int]], index: int, path: tuple[Operator, ...]
) -> list[Reader]:
    found: list[Reader] = []
    for node in (graph.nodes[j] for j in direct[index]):
        if not node.op.is_affine:
            found.append(Reader(node.op, path))
        if isinstance(node.op, Activation):
            found += _readers(graph, direct, node.index, (*path, node.op))
    return found


def relaxes_rows(node: Node) -> bool:
    """Whether rows of coefficients lose nothing where each is pulled through ``node`` alone."""
    return node.op.is_affine or node.op.is_diagonal or node.op.relaxes_rows


def padded_index(mask: Tensor) -> Tensor:
    """Positions where ``mask (n, size)`` holds, ``(n, most)``; short rows add others."""
    most = int(mask.sum(1).max()) if mask.numel() else 0
    order = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices
    return order[:, :most]


def refine(
    graph: Graph,
    node: Node,
    readers: Sequence[Reader],
    state: State,
    region: Region,
    rounding: bool = True,
) -> Box:
    """The node's box with the elements bounded backward that ``readers`` relax with a loss."""
    box = state.boxes[node.index]
    loose = loose_for(readers, box)
    stops = all(isinstance(r.op, Activation) and r.op.is_rectifier for r in readers)
    stops &= not any(r.path for r in readers)
    plain = all(relaxes_rows(n) for n in graph.nodes[1 : node.index + 1])
    if not (stops or (plain and len(node.shape) > 1)) or _is_crowded(graph, node, loose):
        return _refined_together(graph, node, state, region, loose, rounding)

    def settled(low: Tensor, high: Tensor) -> Tensor:
        return ~torch.stack([r.is_loose(Box(low, high)) for r in readers]).any(0)

    pairs = loose.nonzero()
    if not len(pairs):
        return box
    elements = Elements(graph, node.index, state, region, settled if stops else None, rounding)
    low, high = elements.bounds(pairs)
    at = (pairs[:, 0], pairs[:, 1])
    lower = flattened(box.lower).index_put(at, low).reshape(box.lower.shape)
    upper = flattened(box.upper).index_put(at, high).reshape(box.upper.shape)
    return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))


def _is_crowded(graph: Graph, node: Node, loose: Tensor) -> bool:
    """Whether many samples of a network of matrices have about as much to bound.

    Then a product with all their rows is faster than to stop at each row by itself.
    """
    if len(loose) < CROWD or not all(
        len(n.shape) == 1 or _keeps(n) for n in graph.nodes[: node.index + 1]
    ):
        return False
    counts = loose.sum(1)
    most = int(counts.max())
    return most <= FEW and int(counts.sum()) >= CROWDED * len(counts) * most


def _keeps(node: Node) -> bool:
    """Whether it is an input, or changes nothing but shape and scale."""
    return not node.inputs or (node.op.is_affine and node.op.is_diagonal)


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
