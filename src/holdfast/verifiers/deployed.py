"""How far the network as it runs in float32 can be from the network that was proven.

Proofs are about the real-number function of the stored weights. What runs rounds every operation.
Here the error is followed forward over the whole region: an operation that sums ``k`` products in
any order, with or without fused steps, errs by at most ``gamma_k`` times the sum of absolute values
(Higham, 2002, chapter 3), and carries on the error of its inputs. Where a proven margin is larger
than the error of the margin's own logits, the float32 network is covered too. Not covered are
kernels that change the arithmetic itself: Winograd and FFT convolutions, TF32, half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.errors import GraphError
from holdfast.graphs.curves import Curve
from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Affine, Box, Operator
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.operators.conv_transpose import ConvTranspose
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.max_pool import MaxPool
from holdfast.graphs.operators.maximum import MaxOver
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.operators.sum import Sum
from holdfast.verifiers.lipschitz import absolute, slopes

UNIT = 2.0**-24
# Elementary functions of usual libraries are right to this many units in the last place.
FUNCTION_ULPS = 8


@torch.no_grad()
def float32_error(graph: Graph, boxes: list[Box]) -> Tensor | None:
    """Largest ``|float32 output - real output|`` over the region ``(n, *output)``.

    Args:
        graph: The network in float64, not folded, so that its steps are those that run.
        boxes: Bounds of all nodes.

    Returns:
        The error, or None where an operator is not covered.
    """
    errors: list[Tensor] = []
    for node in graph.nodes:
        try:
            errors.append(_error(node, [errors[i] for i in node.inputs], boxes))
        except GraphError:
            return None
    return errors[-1]


def _error(node: Node, errors: list[Tensor], boxes: list[Box]) -> Tensor:
    if not node.inputs:
        return torch.zeros_like(boxes[0].lower)
    op, before = node.op, [boxes[i] for i in node.inputs]
    # What the operator really reads lies within the box widened by the error.
    widened = [Box(b.lower - e, b.upper + e) for b, e in zip(before, errors, strict=True)]
    if isinstance(op, ReLU):
        return errors[0]
    if isinstance(op, (MaxOver, MaxPool)):
        return op.run(errors[0])
    if isinstance(op, Curve):
        steepest = torch.stack(slopes(op, widened[0], node.place)).abs().amax(0)
        value = op.interval(widened[0]).magnitude()
        return steepest * errors[0] + 2 * FUNCTION_ULPS * UNIT * value
    if not isinstance(op, Affine):
        raise GraphError(f"{type(op).__name__} at {node.place!r} is not covered")
    carried = _carried(absolute(op, node.place), errors)
    magnitude = op.magnitude(*widened)
    if magnitude is None or not op.rounds:
        return carried
    terms = (_terms(op, before) + 2) * UNIT
    return carried + terms / (1 - terms) * magnitude


def _carried(op: Operator, errors: list[Tensor]) -> Tensor:
    """The operator with absolute weights, without its offset, applied to errors."""
    zeros = [torch.zeros_like(e) for e in errors]
    return op.run(*errors) - op.run(*zeros)


def _terms(op: Operator, boxes: list[Box]) -> int:
    """Products summed for one element of the output."""
    if isinstance(op, (Linear, Conv)):
        return op.weight[0].numel()
    if isinstance(op, ConvTranspose):
        return op.weight.numel()
    if isinstance(op, Sum):
        return torch.Size([boxes[0].lower.shape[a + 1] for a in op.axes]).numel()
    return 2
