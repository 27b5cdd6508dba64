"""The undecided part of a rectifier network as dense matrices, and beta-CROWN on it.

Over an input box most rectifiers are linear. Everything between the others is one affine map, so
their inputs are ``z_k = b_k + W_k [x, relu(z_1), ..., relu(z_{k-1})]`` with the undecided neurons
only. A pass over many domains is then one matrix product per layer. Gradients need no
recording: with ``x*`` the corner that attains the bound, pushing ``x*`` forward through the chosen
lines gives the derivative for every slope and multiplier (the dual's supergradient).
All of it is search in float32; a domain is closed by bounds of the network itself in float64.
"""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Activation
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import State, absolute_sum, gamma, scale_of

# Elements of all matrices together; larger networks are searched as graphs.
MOST_ELEMENTS = 1 << 27
# Share of coefficients other than zero below which sparse products are faster.
SPARSE = 0.15
RATE = 0.1
DECAY = 0.98


class Affine(NamedTuple):
    """Rows ``coefficients (r, k)``, ``constants (r,)`` and how far rounding may put them off."""

    coefficients: Tensor
    constants: Tensor
    errors: Tensor


@final
@dataclass(frozen=True, slots=True)
class Layer:
    """Undecided neurons of one rectifier node.

    Attributes:
        node: The rectifier.
        source: The node that it reads.
        neurons: Flat positions ``(u,)``.
        inputs: Coefficients of the inputs ``(u, p)``, sparse where most are zero.
        turned: The same, turned ``(p, u)``.
        W: Coefficients of all earlier undecided neurons ``(u, earlier)``.
        b: Constants ``(u,)``.
        error: How far rounding may put the neuron from them, over the box ``(u,)``; zeros where
            the boxes were given without regard to rounding.
    """

    node: int
    source: int
    neurons: Tensor
    inputs: Tensor
    turned: Tensor
    W: Tensor
    b: Tensor
    error: Tensor

    @classmethod
    def of(cls, node: Node, neurons: Tensor, found: Affine, n_inputs: int) -> Layer:
        """From coefficients of inputs and earlier neurons together."""
        W, b, error = found
        inputs, rest = W[:, :n_inputs].contiguous(), W[:, n_inputs:].contiguous()
        turned = inputs.T
        if inputs.numel() and int((inputs != 0).sum()) < SPARSE * inputs.numel():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse", UserWarning)  # said to be in beta
                inputs, turned = inputs.to_sparse_csr(), inputs.T.contiguous().to_sparse_csr()
        return cls(node.index, node.inputs[0], neurons, inputs, turned, rest, b, error)

    def to(self, dtype: torch.dtype) -> Layer:
        """In another precision."""
        moved = [t.to(dtype) for t in (self.inputs, self.turned, self.W, self.b, self.error)]
        return Layer(self.node, self.source, self.neurons, *moved)

    def push(self, x: Tensor, values: Tensor) -> Tensor:
        """``z`` of the inputs ``(n, p)`` and earlier neurons' values: ``(n, u)``."""
        if self.inputs.layout == torch.strided:
            direct = torch.addmm(self.b, x, self.turned)
        else:
            direct = (self.inputs @ x.T).T + self.b
        return direct.addmm_(values, self.W.T)

    def pull(self, v: Tensor, x: Tensor, earlier: Tensor) -> None:
        """Adds ``v W`` to the coefficients of inputs and of earlier neurons."""
        if self.inputs.layout == torch.strided:
            x.addmm_(v, self.inputs)
        else:
            x.add_((self.turned @ v.T).T)
        earlier.addmm_(v, self.W)


@final
@dataclass(frozen=True, slots=True)
class Dense:
    """A network over a box.

    Attributes:
        layers: In order of the graph.
        rows: Coefficients of the property's rows, one per clause ``(c, p + all undecided)``.
        constants: Their constants ``(c,)``.
        middle: Middle of the box ``(p,)``.
        radius: Half of its widths ``(p,)``.
        errors: How far rounding may put the rows off ``(c,)``, as in ``Layer``.
    """

    layers: tuple[Layer, ...]
    rows: Tensor
    constants: Tensor
    middle: Tensor
    radius: Tensor
    errors: Tensor

    def to(self, dtype: torch.dtype) -> Dense:
        """In another precision, for a search."""
        parts = (self.rows, self.constants, self.middle, self.radius, self.errors)
        rows, constants, middle, radius, errors = (t.to(dtype) for t in parts)
        layers = tuple(layer.to(dtype) for layer in self.layers)
        return Dense(layers, rows, constants, middle, radius, errors)

    @property
    def n_inputs(self) -> int:
        """Number of network inputs."""
        return len(self.middle)

    @property
    def cost(self) -> float:
        """Multiplications of one pass over one domain, other operations counted as some."""
        inputs = [k.inputs for k in self.layers]
        direct = [t.numel() if t.layout == torch.strided else t.values().numel() for t in inputs]
        return 16 * self.rows.shape[1] + sum(direct) + sum(k.W.numel() for k in self.layers)

    def spans(self) -> list[tuple[int, int]]:
        """First and last undecided neuron of every layer in the order of all."""
        ends = torch.tensor([0, *(len(k.b) for k in self.layers)]).cumsum(0).tolist()
        return list(itertools.pairwise(ends))


@final
@dataclass(frozen=True, slots=True)
class DenseLines:
    """Relaxations of domains ``(n, u)``: the chord above, and which neurons have a free slope."""

    slope: Tensor
    intercept: Tensor
    loose: Tensor
    active: Tensor
    sign: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor, sign: Tensor) -> DenseLines:
        """For bounds and splits: ``sign`` 1 where ``z >= 0``, -1 where ``z <= 0``, else 0."""
        lower = torch.where(sign > 0, lower.clamp(min=0), lower)
        upper = torch.where(sign < 0, upper.clamp(max=0), upper)
        loose = (lower < 0) & (upper > 0)
        active = ((lower >= 0) & (sign >= 0)).to(lower.dtype)
        slope = torch.where(loose, upper / (upper - lower), active)
        intercept = torch.where(loose, -lower * slope, 0.0)
        return cls(slope, intercept, loose.to(lower.dtype), active, sign)

    def at(self, index: Tensor) -> DenseLines:
        """The domains at ``index``."""
        parts = (self.slope, self.intercept, self.loose, self.active, self.sign)
        return DenseLines(*(t[index] for t in parts))


def condense(
    graph: Graph, state: State, A: Tensor, D: Tensor | None, d: Tensor, box: tuple[Tensor, Tensor]
) -> Dense | None:
    """The dense form over a box, or None where the network has none or it would be too large.

    Args:
        graph: The network, in the precision of the result.
        state: Boxes of one sample.
        A: Rows over the outputs ``(c, m)``.
        D: Their coefficients of the inputs ``(c, p)`` or None.
        d: Their constants ``(c,)``.
        box: Least and greatest inputs ``(p,)``.
    """
    masks = _masks(graph, state)
    if masks is None:
        return None
    undecided = sum(int(m.sum()) for m in masks.values())
    if (undecided + len(A)) * (graph.nodes[0].size + undecided) > MOST_ELEMENTS:
        return None
    layers, known = [], []
    for node, mask in masks.items():
        source = graph.nodes[node].inputs[0]
        neurons = mask.nonzero().squeeze(1)
        unit = A.new_zeros(len(neurons), len(mask)).scatter(1, neurons.unsqueeze(1), 1.0)
        found = _affine(graph, source, unit, state, masks, known)
        layers.append(Layer.of(graph.nodes[node], neurons, found, graph.nodes[0].size))
        known.append(node)
    rows, constants, errors = _affine(graph, len(graph.nodes) - 1, A, state, masks, known)
    if D is not None:
        rows[:, : D.shape[1]] += D
    middle, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    return Dense(tuple(layers), rows, constants + d, middle, radius, errors)


def _masks(graph: Graph, state: State) -> dict[int, Tensor] | None:
    """Undecided neurons by rectifier; None where anything else is not affine."""
    masks: dict[int, Tensor] = {}
    sources = set()
    for node in graph.nodes[1:]:
        if node.op.is_affine:
            continue
        rectifier = isinstance(node.op, Activation) and node.op.is_rectifier
        if not rectifier or node.inputs[0] in sources:
            return None
        sources.add(node.inputs[0])
        masks[node.index] = node.op.is_loose(state.boxes[node.inputs[0]]).flatten()
    return masks


def _affine(
    graph: Graph,
    start: int,
    A: Tensor,
    state: State,
    masks: dict[int, Tensor],
    known: list[int],
) -> Affine:
    """Rows ``A (r, size)`` of a node in terms of inputs and undecided neurons.

    Errors are counted as in ``crown.pull_back``; rows and constants of a property are not its
    business.
    """
    pending = {start: A.reshape(1, len(A), *graph.nodes[start].shape)}
    constant, error, found = A.new_zeros(len(A)), A.new_zeros(len(A)), {}
    rounding, unit = bool(state.magnitudes), 2 * gamma(graph, A.dtype)
    for node in reversed(graph.nodes[: start + 1]):
        if node.index not in pending:
            continue
        rows = pending.pop(node.index)
        magnitude = state.magnitudes[node.index] if rounding else None
        if magnitude is not None:
            error = error + unit * magnitude[0] * absolute_sum(rows)[0]
        if node.index == 0:
            found[0] = rows.reshape(len(A), node.size)
            break
        if node.index in masks:
            mask = masks[node.index]
            flat = flattened(rows, 2)
            found[node.index] = flat[0][:, mask]
            rows = flat.masked_fill(mask, 0.0).reshape(rows.shape)
        pulled = node.op.pull(rows, [state.boxes[i] for i in node.inputs])
        if pulled.constant is not None:
            constant = constant + pulled.constant[0]
        for i, part in zip(node.inputs, pulled.coefficients, strict=True):
            if i in pending and rounding:
                left = absolute_sum(pending[i]) + absolute_sum(part)
                error = error + unit * scale_of(state, i)[0] * left[0]
            pending[i] = pending[i] + part if i in pending else part
    zeros = {i: int(masks[i].sum()) if i else graph.nodes[0].size for i in (0, *known)}
    blocks = [found.get(i, A.new_zeros(len(A), size)) for i, size in zeros.items()]
    return Affine(torch.cat(blocks, 1).contiguous(), constant, error)


def backward(
    net: Dense, rows: Tensor, lines: DenseLines, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds ``(n,)`` of the rows ``(n,)`` of each domain and the coefficients on the way.

    The coefficients ``(n, p + u)`` are those of the inputs and of every rectifier's output.
    """
    A, value = net.rows[rows], net.constants[rows]
    rise = torch.where(lines.loose > 0, alpha, lines.active).sub_(lines.slope)
    p = net.n_inputs
    for layer, (i, j) in zip(reversed(net.layers), reversed(net.spans()), strict=True):
        a = A[:, p + i : p + j]
        positive = a.relu()
        v = a * lines.slope[:, i:j]
        v.addcmul_(positive, rise[:, i:j])
        v.addcmul_(lines.sign[:, i:j], beta[:, i:j], value=-1.0)
        lost = positive.sub_(a).mul_(lines.intercept[:, i:j]).sum(1)
        value = value - lost + v @ layer.b
        layer.pull(v, A[:, :p], A[:, p : p + i])
    inputs = A[:, :p]
    return value + inputs @ net.middle - inputs.abs() @ net.radius, A


def forward(net: Dense, A: Tensor, lines: DenseLines, alpha: Tensor) -> Tensor:
    """Inputs ``z (n, u)`` of all undecided neurons at the corner that attains the bound."""
    p, n = net.n_inputs, len(A)
    low = torch.where(lines.loose > 0, alpha, lines.active)
    values = A.new_empty(n, A.shape[1])
    values[:, :p] = net.middle - A[:, :p].sign() * net.radius
    z = A.new_empty(n, A.shape[1] - p)
    for layer, (i, j) in zip(net.layers, net.spans(), strict=True):
        inner = layer.push(values[:, :p], values[:, p : p + i])
        chord = inner * lines.slope[:, i:j] + lines.intercept[:, i:j]
        values[:, p + i : p + j] = torch.where(A[:, p + i : p + j] > 0, inner * low[:, i:j], chord)
        z[:, i:j] = inner
    return z


def ascend(
    net: Dense,
    rows: Tensor,
    lines: DenseLines,
    alpha: Tensor,
    beta: Tensor,
    steps: int,
    target: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raises bounds by projected Adam on slopes and multipliers.

    Args:
        net: The network.
        rows: Clause of each domain ``(n,)``.
        lines: Relaxations.
        alpha: Slopes to begin with ``(n, u)``.
        beta: Multipliers to begin with.
        steps: Gradient steps.
        target: Domains above it are not pushed further.

    Returns:
        The best slopes, multipliers and bounds ``(n,)``.
    """
    best, best_value = torch.cat([alpha, beta], 1), torch.full((len(rows),), -torch.inf)
    index, x, u = torch.arange(len(rows)), best.clone(), alpha.shape[1]
    gradient, first, second, scale = (torch.empty(0) for _ in range(4))
    for step in range(steps + 1):
        alpha, beta = x[:, :u], x[:, u:]
        value, A = backward(net, rows, lines, alpha, beta)
        better = value > best_value[index]
        at = index[better]
        best[at], best_value[at] = x[better], value[better]
        left = value <= target
        if step == steps or not bool(left.any()):
            break
        if step == 0:
            gradient, scale = torch.empty_like(x), _scale(net, A)
            first, second = torch.zeros_like(x), torch.zeros_like(x)
        if step % 4 == 3 and int(left.sum()) < 0.75 * len(left):
            index, rows, lines, x, A = index[left], rows[left], lines.at(left), x[left], A[left]
            first, second, scale, gradient = first[left], second[left], scale[left], gradient[left]
        z = forward(net, A, lines, x[:, :u])
        torch.mul(A[:, net.n_inputs :].relu_(), z, out=gradient[:, :u])
        gradient[:, :u].mul_(lines.loose)
        torch.mul(lines.sign, z, out=gradient[:, u:]).neg_()
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = torch.div(second, 1 - 0.999 ** (step + 1), out=gradient).sqrt_().add_(1e-12)
        size = RATE * DECAY**step / (1 - 0.9 ** (step + 1))
        x.addcmul_(scale, torch.div(first, root, out=root), value=size)
        x[:, :u].clamp_(0.0, 1.0)
        x[:, u:].clamp_(min=0.0)
    return best[:, :u], best[:, u:], best_value


def evaluate(net: Dense, rows: Tensor, x: Tensor) -> Tensor:
    """Values of the rows ``(n,)`` of the network itself at inputs ``x (n, p)`` within the box."""
    values = torch.cat([x, x.new_zeros(len(x), net.rows.shape[1] - x.shape[1])], 1)
    p = net.n_inputs
    for layer, (i, j) in zip(net.layers, net.spans(), strict=True):
        values[:, p + i : p + j] = layer.push(x, values[:, p : p + i]).relu_()
    return (net.rows[rows] * values).sum(1) + net.constants[rows]


def _scale(net: Dense, A: Tensor) -> Tensor:
    """Step sizes ``(n, 2 u)``: one for slopes, the layer's mean coefficient for multipliers."""
    a = A[:, net.n_inputs :].abs()
    parts = []
    for i, j in net.spans():
        mean = a[:, i:j].mean(1, keepdim=True) if j > i else a[:, i:j]
        parts.append(mean.expand(-1, j - i))
    return torch.cat([torch.ones_like(a), *parts], 1)
