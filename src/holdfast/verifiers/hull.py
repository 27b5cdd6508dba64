"""The tightest linear bounds of single rectifiers that read the input itself.

The chord bounds ``max(z, 0)`` from above by what it is at the ends of z. Where ``z = w . x + b``
and x lies in a box, that forgets how z came about: only few corners of the box attain its ends. In
coordinates ``t`` in [0, 1] along which z grows, ``max(z, 0)`` is a supermodular function of the
corners, so its concave envelope over the box is the Lovász extension (Lovász, 1983; Tawarmalani,
Richard and Xiong, 2013; Anderson et al., 2020, arXiv:1811.01988): the coordinates sorted from the
largest, every prefix of them is a corner, and each coordinate's slope is what its step adds. Every
order gives a sound upper plane, and the planes of x's own order meet the envelope at x.

A row that was pulled back to ``sum_j a_j max(z_j, 0) + rest`` is thus at least a convex function
of x, exact at the corners of the box where ``rest`` is. Its minimum is sought by Frank-Wolfe steps
on the smoothed dual: the linear bound at hand is mixed with the one that is tight where it attains
its smoothed minimum. Every mixture is sound, so the best is taken as it is, rounding charged.
"""
# ruff: noqa: N803, N806 - A is the matrix of the literature

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import LinearBound, State, pull_back
from holdfast.verifiers.domains import Shifted
from holdfast.verifiers.regions import BoxRegion, Region

STEPS = 30
"""Mixtures tried."""
MOST_ENTRIES = 1 << 19
"""Weights of all undecided neurons; where there are more, a step costs more than a split gains."""
MOST_READ = 1 << 28
"""Coefficients pulled back to find them, a few seconds' work."""
CHUNK = 1 << 18
"""Elements of the coefficients of neurons read at once."""
LINE_SEARCH = 12


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Rectifiers of one node that are affine in the input: ``max(weight . x[index] + bias, 0)``.

    Attributes:
        node: Position of the rectifiers.
        neuron: Flat positions in it, ``(j,)``.
        index: Inputs read, ``(j, m)``; places that are not needed repeat with weight 0.
        weight: ``(j, m)`` in float64.
        bias: ``(j,)``.
        error: Bound of what rounding changed of the affine function over the box, ``(j,)``.
    """

    node: int
    neuron: Tensor
    index: Tensor
    weight: Tensor
    bias: Tensor
    error: Tensor


class Row(NamedTuple):
    """A row over one box: ``row >= A . x + constant``, and the terms that it was made of.

    Attributes:
        A: ``(p,)``.
        constant: A number.
        lower: Least inputs ``(p,)``.
        upper: Greatest inputs.
        after: For each reading, the coefficients of its rectifiers ``(j,)``.
        low: For each reading, lower ends ``(j,)`` of the rectifiers' inputs.
        high: Upper ends.
        slopes: For each reading, the slopes of the lower lines in use ``(j,)``.
    """

    A: Tensor
    constant: Tensor
    lower: Tensor
    upper: Tensor
    after: list[Tensor]
    low: list[Tensor]
    high: list[Tensor]
    slopes: list[Tensor]


@torch.no_grad()
def read_rectifiers(graph: Graph, state: State) -> list[Reading]:
    """The undecided rectifiers with nothing but affine steps before them.

    Args:
        graph: The network in float64.
        state: Boxes of all nodes over one region ``(1, ...)``.

    Returns:
        One entry for each node; none where there are no such rectifiers or too many weights.
    """
    found, entries, read = [], 0, 0
    for node, op in _first_rectifiers(graph):
        neuron = flattened(op.is_loose(state.boxes[node.inputs[0]]))[0].nonzero()[:, 0]
        read += len(neuron) * max(n.size for n in graph.nodes[: node.index])
        if read > MOST_READ:
            return []
        if len(neuron):
            found.append(_read(graph, node.index, neuron, state))
            entries += found[-1].weight.numel()
        if entries > MOST_ENTRIES:
            return []
    return found


def _first_rectifiers(graph: Graph) -> Iterator[tuple[Node, ReLU]]:
    """Those that read affine functions of the input."""
    direct = {0}
    for node in graph.nodes[1:]:
        if node.op.is_affine and direct.issuperset(node.inputs):
            direct.add(node.index)
        elif isinstance(node.op, ReLU) and node.inputs[0] in direct:
            yield node, node.op


def _read(graph: Graph, node: int, neuron: Tensor, state: State) -> Reading:
    source = graph.nodes[graph.nodes[node].inputs[0]]
    step = max(1, CHUNK // max(n.size for n in graph.nodes[: source.index + 1]))
    rows, safe = [], []
    for part in neuron.split(step):
        unit = torch.zeros(1, len(part), source.size, dtype=torch.float64)
        unit = unit.scatter(2, part[None, :, None], 1.0).reshape(1, len(part), *source.shape)
        bound = pull_back(graph, source.index, unit, state)
        rows.append(_sparse(flattened(bound.A, 2)[0]))
        safe.append(bound.constant[0])
    m = max(part[0].shape[1] for part in rows)
    index, weight = (torch.cat([pad(part[k], (0, m - part[k].shape[1])) for part in rows])
                     for k in (0, 1))  # fmt: skip
    origin = torch.zeros(1, *graph.input_shape, dtype=torch.float64)
    bias = flattened(graph.values(origin)[source.index])[0, neuron]
    # The pull's constant is the bias less its error; the bias of a run has an error of its own,
    # which is less than half of that.
    return Reading(node, neuron, index, weight, bias, 4 * (bias - torch.cat(safe)).abs())


def _sparse(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and values of what is not zero, ``(r, m)`` each, filled up with zeros."""
    m = int((rows != 0).sum(1).max())
    index = (rows != 0).to(torch.uint8).topk(m, 1).indices
    return index, rows.gather(1, index)


@torch.no_grad()
def tightened(row: Row, readings: Sequence[Reading], steps: int = STEPS) -> float:
    """A lower bound of the row over its box, with all rounding errors; at least as good as before.

    It stops early once the bound is positive, or once it is clear that none will be.
    """
    terms = [
        term
        for reading, *rest in zip(readings, row.after, row.low, row.high, row.slopes, strict=True)
        for term in (_Above.of(row, reading, *rest), _Below.of(row, reading, *rest))
        if len(term)
    ]
    middle, radius = (row.lower + row.upper) / 2, (row.upper - row.lower) / 2
    charge = _charge(row, terms, steps)
    A, constant = row.A, row.constant
    best = _least(A, row) + constant
    scale = (A.abs() * radius).mean()
    for step in range(steps):
        if float(best - charge) > 0 or not bool(scale > 0):
            break
        soft = 2 * scale / (1 + step / 10)
        x = middle + radius * (-(A * radius) / soft).clamp(-1, 1)
        new, shift = row.A.clone(), row.constant.clone()
        for term in terms:
            shift += term.add_tight(x, new)
        if float(new @ x + shift) <= 0:
            break  # the convex function itself is not positive there
        mixed = _mixture(A, constant, new, shift, middle, radius, soft)
        A, constant = A + mixed * (new - A), constant + mixed * (shift - constant)
        best = torch.maximum(best, _least(A, row) + constant)
    return float(best - charge)


def _least(A: Tensor, row: Row) -> Tensor:
    return torch.minimum(A * row.lower, A * row.upper).sum()


def _mixture(
    A: Tensor, c: Tensor, B: Tensor, d: Tensor, middle: Tensor, radius: Tensor, soft: Tensor
) -> float:
    """The share of ``B . x + d`` beside ``A . x + c`` with the greatest smoothed minimum."""
    share = torch.linspace(0, 1, LINE_SEARCH + 1, dtype=A.dtype)[1:] ** 3
    mixed = A + share[:, None] * (B - A)
    pull = mixed * radius
    at = (-pull / soft).clamp(-1, 1)
    value = mixed @ middle + (pull * at + soft / 2 * at**2).sum(1) + c + share * (d - c)
    return float(share[value.argmax()])


def _charge(row: Row, terms: Sequence[_Above | _Below], steps: int) -> Tensor:
    """Rounding of everything that is summed here, and that of the neurons' own affine functions.

    No slope of a plane is steeper than the neuron's weight, so the sums of absolute terms below
    bound every sum that is formed, and mixing does not let errors grow.
    """
    most = torch.maximum(row.lower.abs(), row.upper.abs())
    size = (row.A.abs() * most).sum() + row.constant.abs()
    count, given = 64 + 4 * steps + len(most), torch.zeros_like(size)
    for term in terms:
        reach = (term.weight.abs() * most[term.index]).sum(1) + term.bias.abs()
        size = size + 4 * (term.after.abs() * reach).sum()
        given = given + 2 * (term.after.abs() * term.error).sum()
        count += len(term) + 4 * term.weight.shape[1]
    return 2 * count * torch.finfo(size.dtype).eps * size + given


@torch.no_grad()
def rows_of(
    graph: Graph,
    state: State,
    bound: LinearBound,
    shifted: Shifted,
    readings: Sequence[Reading],
    parameters: Mapping[int, Tensor],
) -> list[Row]:
    """The rows of a backward pass that watched the readings' nodes, sample by sample.

    Args:
        graph: The network.
        state: The boxes that the pass used.
        bound: What it found.
        shifted: The region with what a property adds of its own.
        readings: Rectifiers, see `read_rectifiers`.
        parameters: The lower slopes that the pass used.
    """
    region = shifted.region
    assert isinstance(region, BoxRegion)
    A, constant = flattened(shifted.full(bound.A), 2), bound.constant + shifted.d
    lower, upper = flattened(region.lower), flattened(region.upper)
    sides = []
    for reading in readings:
        node = graph.nodes[reading.node]
        box, op = state.boxes[node.inputs[0]], node.op
        assert isinstance(op, ReLU)
        lines = op.relax(box.lower[:, None], box.upper[:, None], parameters.get(reading.node))
        after = bound.watched.get(reading.node, torch.zeros_like(lines.lower_slope))
        values = after, box.lower[:, None], box.upper[:, None], lines.lower_slope
        sides.append(
            [flattened(v, 2)[:, :, reading.neuron].expand(*A.shape[:2], -1) for v in values]
        )
    return [
        Row(A[i, j], constant[i, j], lower[i], upper[i],
            *([side[k][i, j] for side in sides] for k in range(4)))
        for i in range(len(A)) for j in range(A.shape[1])
    ]  # fmt: skip


@torch.no_grad()
def lifted(
    graph: Graph,
    region: Region,
    state: State,
    A: Tensor,
    parameters: Mapping[int, Tensor],
    value: Tensor,
) -> Tensor:
    """Lower bounds of rows over one sample's box; those that are not positive are tried again.

    Args:
        graph: The network in float64.
        region: The inputs; nothing is tried over other regions than a box.
        state: Boxes of all nodes ``(1, ...)``.
        A: Rows over the outputs ``(1, k, *outputs)``.
        parameters: Lower slopes of the rectifiers.
        value: What bounds they have ``(1, k)``.
    """
    low = (value[0] <= 0).nonzero()[:, 0]
    if not isinstance(region, BoxRegion) or not len(low):
        return value
    readings = read_rectifiers(graph, state)
    if not readings:
        return value
    chosen = {i: t if t.shape[2] == 1 else t[:, :, low] for i, t in parameters.items()}
    watch = frozenset(r.node for r in readings)
    last = len(graph.nodes) - 1
    bound = pull_back(graph, last, A[:, low], state, parameters=chosen, watch=watch)
    shifted = Shifted(region, None, value.new_zeros(1, 1))
    rows = rows_of(graph, state, bound, shifted, readings, chosen)
    found = torch.tensor([tightened(row, readings) for row in rows], dtype=value.dtype)
    return value.index_copy(1, low, torch.fmax(value[:, low], found[None]))


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """Undecided rectifiers whose coefficients have one sign: chosen rows of a `Reading`."""

    index: Tensor
    weight: Tensor
    bias: Tensor
    error: Tensor
    after: Tensor
    slope: Tensor
    intercept: Tensor

    def __len__(self) -> int:
        return len(self.after)

    def add(self, A: Tensor, slopes: Tensor) -> None:
        """Adds ``after . slopes`` to coefficients of inputs, in place."""
        A.index_add_(0, self.index.flatten(), (self.after[:, None] * slopes).flatten())

    @staticmethod
    def chosen(
        reading: Reading, mask: Tensor, after: Tensor, slope: Tensor, intercept: Tensor
    ) -> tuple[Tensor, ...]:
        """The rows of everything where the mask holds."""
        own = reading.index, reading.weight, reading.bias, reading.error
        return tuple(t[mask] for t in (*own, after, slope, intercept))


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Below(_Term):
    """Coefficients above zero: the rectifier itself is convex, its tangents are the lower lines."""

    @classmethod
    def of(
        cls, row: Row, reading: Reading, after: Tensor, low: Tensor, high: Tensor, slopes: Tensor
    ) -> _Below:
        """Those of a row."""
        mask = (low < 0) & (high > 0) & (after > 0)
        return cls(*cls.chosen(reading, mask, after, slopes, torch.zeros_like(slopes)))

    def add_tight(self, x: Tensor, A: Tensor) -> Tensor:
        """Tangents at x instead of the lines in use: coefficients in place, the constant back."""
        z = (self.weight * x[self.index]).sum(1) + self.bias
        change = (z > 0).to(z.dtype) - self.slope
        self.add(A, change[:, None] * self.weight)
        return (self.after * change * self.bias).sum()


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Above(_Term):
    """Coefficients below zero: planes of the concave envelope instead of the chord.

    ``origin`` is the corner of least z, ``step`` what each input adds on its way across the box.
    """

    origin: Tensor
    step: Tensor
    width: Tensor

    @classmethod
    def of(
        cls, row: Row, reading: Reading, after: Tensor, low: Tensor, high: Tensor, slopes: Tensor
    ) -> _Above:
        """Those of a row; the chord is the one over the box of each rectifier's input."""
        mask = (low < 0) & (high > 0) & (after < 0)
        width = torch.where(mask, high - low, 1.0)
        slope = torch.where(mask, high / width, 0.0)
        rows = cls.chosen(reading, mask, after, slope, -low * slope)
        index, weight = rows[0], rows[1]
        origin = torch.where(weight > 0, row.lower[index], row.upper[index])
        span = (row.upper - row.lower)[index]
        return cls(*rows, origin=origin, step=weight.abs() * span, width=span)

    def add_tight(self, x: Tensor, A: Tensor) -> Tensor:
        """The planes of x's order, not the chords: coefficients in place, the constant back."""
        way = (x[self.index] - self.origin).abs() / self.width.clamp_min(1e-300)
        order = way.argsort(1, descending=True)
        first = (self.weight * self.origin).sum(1, keepdim=True) + self.bias[:, None]
        z = first + self.step.gather(1, order).cumsum(1)
        value = torch.cat([first, z], 1).relu()
        gain = torch.zeros_like(way).scatter(1, order, value.diff(dim=1))
        share = torch.where(self.step > 0, gain / self.step.clamp_min(1e-300), 0.0).clamp(0, 1)
        slopes = share * self.weight
        self.add(A, slopes - self.slope[:, None] * self.weight)
        constant = value[:, 0] - (slopes * self.origin).sum(1)
        return (self.after * (constant - self.slope * self.bias - self.intercept)).sum()
