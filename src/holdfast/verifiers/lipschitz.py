"""Certified radii from margins and Lipschitz constants: one forward pass per sample.

Globally, the constants of all layers multiply (Tsuzuku et al., 2018, arXiv:1802.04034), which is
sharp for networks made of 1-Lipschitz layers: almost orthogonal layers (AOL, Prach & Lampert, 2022,
arXiv:2208.03160) are plain layers once their weights are rescaled, and SDP-based layers (SLL,
Araujo et al., 2023, arXiv:2303.03169), ``z - 2 W T^-1 relu(W^T z + b)``, are recognised by their
own condition. Locally, the gradient is bounded over the ball by intervals (Fast-Lip, Weng et al.,
2018, arXiv:1804.09699), where neurons that cannot change side count with their own slope only.
"""
# ruff: noqa: N803, N806 - A, C and W are the matrices of the literature

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.errors import GraphError
from holdfast.graphs.curves import Curve
from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Activation, Box, Operator
from holdfast.graphs.operators.add import Add
from holdfast.graphs.operators.concat import Concat
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.operators.conv_transpose import ConvTranspose
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.max_pool import MaxPool
from holdfast.graphs.operators.maximum import MaxOver
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.operators.reshape import Reshape
from holdfast.graphs.operators.scale import Scale
from holdfast.graphs.operators.sum import Sum
from holdfast.graphs.operators.take import Take
from holdfast.graphs.operators.trigonometric import Sine
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.bounds import lower_over, margins
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import Norm, threat_region

# Far above what float64 loses in norms and singular values of layers that fit in memory.
SLACK = 1 + 1e-9
HALVINGS = 12


@torch.no_grad()
def lipschitz_radius(graph: Graph, x: Tensor, y: Tensor, norm: Norm = "l2") -> Tensor:
    """Certified radii ``(n,)`` from global constants; 0 where the class is wrong.

    Args:
        graph: The network, in float64.
        x: Inputs ``(n, *shape)``, float64.
        y: Classes ``(n,)``.
        norm: ``l2``; for ``l1`` the same radius holds, for ``linf`` it shrinks by the root of the
            input's size.

    Raises:
        GraphError: an operator has no Lipschitz constant, or the norm is l0.
    """
    if norm == "l0":
        raise GraphError("l0 balls are not bounded: a Lipschitz constant says nothing about them.")
    C = margins(y, graph.nodes[-1].size).to(x)
    point = threat_region(x, 0.0, "linf", -torch.inf, torch.inf)
    margin, _ = lower_over(graph, point, C, "ibp")
    steep = _row_norms(graph, C.reshape(*C.shape[:2], *graph.output_shape))
    radius = (margin / steep.clamp(min=torch.finfo(x.dtype).tiny)).amin(1).clamp(min=0)
    return radius / (math.sqrt(graph.nodes[0].size) if norm == "linf" else 1.0)


def _row_norms(graph: Graph, A: Tensor) -> Tensor:
    """Lipschitz constants ``(n, k)`` of ``A . output``; last affine layers merge with ``A``."""
    node, constants = graph.nodes[-1], global_constants(graph)
    while node.inputs and node.op.is_affine and len(node.inputs) == 1:
        before = graph.nodes[node.inputs[0]]
        like = A.new_zeros(1, *before.shape)
        A, node = node.op.pull(A, [Box(like, like)]).coefficients[0], before
    return torch.linalg.vector_norm(flattened(A, 2), 2, 2) * constants[node.index] * SLACK


def global_constants(graph: Graph) -> list[float]:
    """For every node, an upper bound of its l2 Lipschitz constant in the network's input."""
    found: list[float] = []
    for node in graph.nodes:
        contraction = _contraction(graph, node)
        if not node.inputs:
            found.append(1.0)
        elif contraction is not None:
            found.append(found[contraction[0]] * contraction[1] * SLACK)
        else:
            found.append(_constant(graph, node, [found[i] for i in node.inputs]) * SLACK)
    return found


def _constant(graph: Graph, node: Node, inputs: list[float]) -> float:
    op, first = node.op, graph.nodes[node.inputs[0]]
    if isinstance(op, Add):
        sizes = [graph.nodes[i].size for i in node.inputs]
        return sum(c * math.sqrt(node.size / s) for c, s in zip(inputs, sizes, strict=True))
    if isinstance(op, Concat):
        return math.hypot(*inputs)
    return inputs[0] * _layer(op, first.shape, node.place)


def _layer(op: Operator, shape: tuple[int, ...], place: str) -> float:
    """The constant of an operator with one input of this shape."""
    if isinstance(op, Linear):
        return float(torch.linalg.matrix_norm(op.weight.double(), 2))
    if isinstance(op, (Conv, ConvTranspose)):
        return _convolution(op, shape)
    if isinstance(op, Scale):
        return float(op.factor.abs().max())
    if isinstance(op, (Take, MaxPool)):
        read = op.index if isinstance(op, Take) else op.cells
        return math.sqrt(float(torch.bincount(read[read >= 0].flatten()).max()))
    if isinstance(op, Sum):
        return math.sqrt(math.prod(shape[a] for a in op.axes))
    if isinstance(op, (ReLU, Reshape, MaxOver, Sine)):
        return 1.0
    if isinstance(op, Curve) and op.inflections:
        peaks = op.derivative(torch.tensor([*op.inflections, -60.0, 60.0], dtype=torch.float64))
        if bool(peaks.isfinite().all()) and float(peaks.abs().max()) < 2:
            return float(peaks.abs().max())
    raise GraphError(
        f"{type(op).__name__} at {place!r} has no global Lipschitz constant here. Use "
        "method='crown', which bounds it."
    )


def _convolution(op: Conv | ConvTranspose, shape: tuple[int, ...]) -> float:
    """Two bounds of a convolution's norm, the smaller counts.

    On a torus large enough that nothing wraps round, the zero-padded convolution is a part of the
    circular one, whose norm is the largest over all frequencies of its transfer matrix (Sedghi et
    al., 2019, arXiv:1805.10408); strides only drop outputs. And every input element is in at most
    ``prod ceil(k / s)`` patches, each multiplied by the flat kernel.
    """
    weight, groups = op.weight.double(), op.groups
    kernel, axes = weight.shape[2:], tuple(range(-len(op.stride), 0))
    spread = zip(shape[1:], op.dilation, kernel, op.stride, strict=True)
    sizes = [n * (s if isinstance(op, ConvTranspose) else 1) + d * k for n, d, k, s in spread]
    wide = weight.new_zeros(*weight.shape[:2], *sizes)
    at = [torch.arange(k) * d for k, d in zip(kernel, op.dilation, strict=True)]
    wide[(slice(None), slice(None), *torch.meshgrid(*at, indexing="ij"))] = weight
    transfer = torch.fft.fftn(wide, dim=axes).flatten(2)
    blocks = transfer.reshape(groups, -1, *transfer.shape[1:]).permute(0, 3, 1, 2)
    circular = float(torch.linalg.matrix_norm(blocks, 2).max())
    overlap = math.prod(
        math.ceil((d * (k - 1) + 1) / s)
        for k, s, d in zip(kernel, op.stride, op.dilation, strict=True)
    )
    flat = weight.flatten(1).reshape(groups, -1, weight[0].numel())
    if isinstance(op, ConvTranspose):
        return circular
    return min(circular, float(torch.linalg.matrix_norm(flat, 2).max()) * math.sqrt(overlap))


def _contraction(graph: Graph, node: Node) -> tuple[int, float] | None:
    """The node ``z`` where this one is ``z - V^T D relu(V z + b)`` with ``2 D^-1 >= V V^T``.

    That condition makes the map 1-Lipschitz (theorem 3 of the SLL paper). Stored weights ``M`` are
    ``V^T D`` up to rounding ``E``, which adds ``|E| |V|`` to the constant returned beside the node.
    """
    if not (isinstance(node.op, Add) and node.op.sign < 0):
        return None
    source, last = node.inputs
    chain = [graph.nodes[last]]
    while len(chain) < 3 and len(chain[-1].inputs) == 1:
        chain.append(graph.nodes[chain[-1].inputs[0]])
    ops = [n.op for n in chain]
    if len(ops) < 3 or chain[2].inputs != (source,) or not isinstance(ops[1], ReLU):
        return None
    out, into = ops[0], ops[2]
    if not (isinstance(out, Linear) and isinstance(into, Linear)):
        return None
    V, M = into.weight.double(), out.weight.double()
    if V.shape != M.T.shape:
        return None
    D = ((M.T * V).sum(1) / (V * V).sum(1).clamp(min=1e-300)).clamp(min=0)
    root, rest = D.sqrt()[:, None] * V, M.T - D[:, None] * V
    if float(torch.linalg.matrix_norm(root, 2)) ** 2 * SLACK > 2:
        return None
    extra = torch.linalg.matrix_norm(rest, 2) * torch.linalg.matrix_norm(V, 2)
    return (source, 1.0 + float(extra)) if float(extra) < 1e-3 else None


@torch.no_grad()
def local_radius(
    graph: Graph,
    x: Tensor,
    y: Tensor,
    norm: Norm = "l2",
    domain: tuple[Tensor | float, Tensor | float] = (0.0, 1.0),
    largest: Tensor | float = 1.0,
) -> Tensor:
    """Certified radii ``(n,)``: the largest found with ``margin > radius * steepest gradient``.

    Args:
        graph: The network of affine operators and activations, in float64.
        x: Inputs ``(n, *shape)``, float64.
        y: Classes ``(n,)``.
        norm: ``linf``, ``l2`` or ``l1``.
        domain: Least and greatest inputs.
        largest: Radius from which on it is not sought.
    """
    C = margins(y, graph.nodes[-1].size).to(x)
    A = C.reshape(*C.shape[:2], *graph.output_shape)
    margin, _ = lower_over(graph, threat_region(x, 0.0, "linf", *domain), C, "ibp")
    high = torch.as_tensor(largest).to(x).expand(len(x)).clone()
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        state = propagate(graph, threat_region(x, middle, norm, *domain), "crown")
        steep = gradient_bound(graph, state.boxes, A, norm)
        proven = (margin > steep * middle[:, None]).all(1)
        low, high = torch.where(proven, middle, low), torch.where(proven, high, middle)
    return low


def gradient_bound(graph: Graph, boxes: list[Box], A: Tensor, norm: Norm) -> Tensor:
    """Largest dual norm ``(n, k)`` of the gradient of ``A . output`` where values are in boxes."""
    pending = {len(graph.nodes) - 1: (A, torch.zeros_like(A))}
    for node in reversed(graph.nodes[1:]):
        if node.index not in pending:
            continue
        centre, radius = pending.pop(node.index)
        parts = _gradient(node, [boxes[i] for i in node.inputs], centre, radius)
        for i, (c, r) in zip(node.inputs, parts, strict=True):
            old = pending.get(i)
            pending[i] = (c, r) if old is None else (old[0] + c, old[1] + r)
    centre, radius = pending.get(0, (A.new_zeros(*A.shape[:2], 1), A.new_zeros(*A.shape[:2], 1)))
    order = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    return torch.linalg.vector_norm((centre.abs() + radius).flatten(2), order, 2) * SLACK


def _gradient(
    node: Node, boxes: list[Box], centre: Tensor, radius: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Intervals of coefficients before the node, as centres and radii, for every input."""
    op = node.op
    if isinstance(op, Activation):
        low, high = (s.unsqueeze(1) for s in slopes(op, boxes[0], node.place))
        ends = [(centre + sign * radius) * s for sign in (-1, 1) for s in (low, high)]
        least, most = torch.stack(ends).amin(0), torch.stack(ends).amax(0)
        return [((least + most) / 2, (most - least) / 2)]
    around = absolute(op, node.place).pull(radius + 1e-12 * centre.abs(), boxes).coefficients
    return list(zip(op.pull(centre, boxes).coefficients, around, strict=True))


def absolute(op: Operator, place: str) -> Operator:
    """The affine operator with the absolute values of its coefficients."""
    if isinstance(op, (Linear, Conv, ConvTranspose)):
        return replace(op, weight=op.weight.abs())
    if isinstance(op, Scale):
        return replace(op, factor=op.factor.abs())
    if isinstance(op, Add):
        return Add(1)
    if isinstance(op, (Reshape, Take, Sum, Concat)):
        return op
    raise GraphError(
        f"{type(op).__name__} at {place!r} has no gradient bound here. Use method='crown'."
    )


def slopes(op: Activation, box: Box, place: str) -> tuple[Tensor, Tensor]:
    """Least and greatest derivative over the box."""
    if isinstance(op, ReLU):
        return (box.lower > 0).to(box.lower), (box.upper >= 0).to(box.lower)
    if isinstance(op, Curve):
        inner = [box.lower.new_tensor(p) for p in op.inflections]
        points = [box.lower, box.upper]
        points += [torch.minimum(torch.maximum(box.lower, p), box.upper) for p in inner]
        values = torch.stack([op.derivative(z) for z in points])
        return values.amin(0) - 1e-12, values.amax(0) + 1e-12
    raise GraphError(
        f"{type(op).__name__} at {place!r} has no gradient bound here. Use method='crown'."
    )
