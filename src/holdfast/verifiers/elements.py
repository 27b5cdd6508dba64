"""Bounds of single elements of a node, each a row of its own on the way back to the input.

Rows begin as windows of a feature map (see ``graphs.window``) and are spread out once windows would
cover half the map. Before every non-linear node the row is also bounded over the boxes known there:
where that already settles the element's sign, no better bound would change its relaxation, and the
row ends (early termination, as in GPUPoly; Müller et al., 2021, arXiv:2007.10868). Of the two ends
of a range, the one nearer to zero is bounded first, and the other only where that settles nothing.
"""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Activation, Box, Lines, Pulled, pull_lines
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.relu import ChosenSlopes
from holdfast.graphs.shapes import flattened
from holdfast.graphs.window import Window
from holdfast.verifiers.crown import State, absolute_sum, gamma, scale_of
from holdfast.verifiers.fronts import Dense, Front, Rows, lines_of, merged, spread_out, total
from holdfast.verifiers.regions import BoxRegion, Region

# Bytes of coefficients handled at once: enough for full speed of products, few enough for caches.
CHUNK = 1 << 22
# Rows of one sample from which on its boxes are worth a pass of their own.
OWN_PASS = 16
# Rows are sorted out when at least this share of them is settled.
SETTLED = 0.2


@final
class Elements:
    """Bounds of elements of one node.

    Args:
        graph: The network.
        start: The node.
        state: Boxes of all nodes up to it.
        region: Inputs.
        settled: Whether bounds ``(r,)`` of elements are as good as any, or None for never.
        rounding: Subtract the bound of rounding errors.

    Attributes:
        choices: Free choices of relaxations by node, ``(q, r, 2, *window)`` for all rows of one
            call of ``least``; defaults are filled in where a node has none. None for lines shared
            by all rows.
    """

    def __init__(
        self,
        graph: Graph,
        start: int,
        state: State,
        region: Region,
        settled: Callable[[Tensor, Tensor], Tensor] | None,
        rounding: bool = True,
    ) -> None:
        self.graph, self.start, self.state, self.region = graph, start, state, region
        self.settled, self.rounding = settled, rounding
        self.unit = 2 * gamma(graph, state.boxes[start].lower.dtype)
        self.widest = max(n.size for n in graph.nodes[: start + 1])
        self.fruitless: set[int] = set()
        self.choices: dict[int, Tensor] | None = None
        self.boxes: dict[int, Box] = {}
        self.fixed: dict[int, tuple[Lines, Tensor]] = {}
        self.seen: Region | None = None

    def bounds(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds ``(r,)`` of the elements at ``pairs (r, 2)`` of sample and flat position."""
        box = self.state.boxes[self.start]
        at = (pairs[:, 0], pairs[:, 1])
        self.low, self.high = flattened(box.lower)[at], flattened(box.upper)[at]
        if self.settled is None:
            for part in torch.arange(len(pairs), device=pairs.device).split(self.step()):
                self._run(self._begin(pairs[part], part))
            return self.low, self.high
        # Most elements are settled by the end nearer to zero; then the other need not be known.
        near = 1.0 - 2.0 * (self.high < -self.low).to(self.low.dtype)
        for side in (near, -near):
            open_ = (~self.settled(self.low, self.high)).nonzero().squeeze(1)
            for part in open_.split(2 * self.step()) if len(open_) else ():
                self._run(self._begin(pairs[part], part).turned(side[part]))
        return self.low, self.high

    def least(self, pairs: Tensor) -> Tensor:
        """Lower bounds of ``z`` and of ``-z`` of every element, ``(r, 2)``, by ``choices``."""
        front = self._begin(pairs, torch.arange(len(pairs), device=pairs.device))
        while True:
            found = self._advance(front)
            if found is not None:
                return found

    def step(self) -> int:
        """Rows handled at once."""
        return max(1, CHUNK // (self.widest * self.state.boxes[0].lower.element_size()))

    def _begin(self, pairs: Tensor, which: Tensor) -> Front:
        """Unit coefficients; the row of a fully connected layer at once."""
        node, like = self.graph.nodes[self.start], self.state.boxes[self.start].lower
        r, sample, at = len(pairs), pairs[:, 0], pairs[:, 1]
        zero = like.new_zeros(r, 1)
        front = Front({}, which, sample, zero, zero)
        if isinstance(node.op, Linear) and len(node.shape) == 1:
            magnitude = self.state.magnitudes[self.start] if self.rounding else None
            if magnitude is not None:
                front.error = self.unit * magnitude[sample]
            front.constant = node.op.bias[at].unsqueeze(1)
            front.pending[node.inputs[0]] = Dense(node.op.weight[at].unsqueeze(1), sample, None)
            return front
        if len(node.shape) < 2:
            unit = like.new_zeros(r, 1, node.size).scatter(2, at[:, None, None], 1.0)
            front.pending[self.start] = Dense(unit.reshape(r, 1, *node.shape), sample, None)
            return front
        place = torch.unravel_index(at, node.shape)
        A = like.new_zeros(r, 1, node.shape[0], *[1] * (len(node.shape) - 1))
        A[torch.arange(r, device=at.device), 0, place[0]] = 1.0
        front.pending[self.start] = Window(A, torch.stack(place[1:], 1), sample)
        return front

    def _run(self, front: Front) -> None:
        """Pull the rows back to the input and keep the best bounds on the way."""
        while True:
            index = max(front.pending)
            if self._may_settle(front, self.graph.nodes[index]):
                front = self._sorted_out(front, index)
                if not len(front.which):
                    return
            if isinstance(front.pending[index], Dense) and self._is_divisible(front):
                for part in self._parts(front):
                    self._run(part)
                return
            value = self._advance(front)
            if value is not None:
                self._keep(front, value)
                return

    def _advance(self, front: Front) -> Tensor | None:
        """One node further back; the bounds ``(r, 2)`` once the input is reached."""
        index = max(front.pending)
        node = self.graph.nodes[index]
        if front.mirrored and (index == 0 or not node.op.is_affine):
            front.double()
        rows = front.pending.pop(index)
        self._charge(front, index, rows)
        if index == 0:
            return self._over_region(rows) + front.constant - front.error
        self._pull(front, node, rows)
        return None

    def _charge(self, front: Front, index: int, rows: Rows) -> None:
        """Rounding errors of the node's own sums."""
        magnitude = self.state.magnitudes[index] if self.rounding else None
        if magnitude is not None:
            scale = self.unit * magnitude[front.sample]
            front.error = front.error + scale * absolute_sum(rows.A)

    def _pull(self, front: Front, node: Node, rows: Rows) -> None:
        parts, constant = self._pulled(node, rows)
        if constant is not None:
            front.constant = front.constant + constant
        for i, part in zip(node.inputs, parts, strict=True):
            other = front.pending.get(i)
            if other is not None:
                if self.rounding:
                    left = absolute_sum(other.A) + absolute_sum(part.A)
                    scale = scale_of(self.state, i)[front.sample]
                    front.error = front.error + self.unit * scale * left
                part = total(other, part, self.graph.nodes[i].shape)
            front.pending[i] = part
        self._spread(front)

    def _pulled(self, node: Node, rows: Rows) -> tuple[list[Rows], Tensor | None]:
        """Coefficients for every input of ``node`` and the constant."""
        boxes = [self.state.boxes[i] for i in node.inputs]
        if isinstance(node.op, Activation):
            pulled = self._relaxed(node, node.op, rows)
        elif isinstance(rows, Window):
            found = node.op.pull_window(rows, boxes)
            if found is not None:
                return [found[0]] * len(node.inputs), found[1]
            return self._pulled(node, spread_out(rows, node.shape))
        else:
            if not node.op.is_affine:
                boxes = [Box(rows.gather(b.lower), rows.gather(b.upper)) for b in boxes]
            pulled = node.op.pull(rows.merged(), boxes)
        constant = pulled.constant
        if isinstance(rows, Dense):
            parts: list[Rows] = [rows._replace(A=rows.split(c)) for c in pulled.coefficients]
            return parts, None if constant is None else rows.split(constant)
        return [rows._replace(A=pulled.coefficients[0])], constant

    def _relaxed(self, node: Node, op: Activation, rows: Rows) -> Pulled:
        """Coefficients before an activation, by the default lines or those of ``choices``."""
        A = merged(rows)
        if self.choices is None or not op.n_parameters:
            return pull_lines(A, lines_of(rows, self.state.relaxed(node, op)))
        box = self._box(node, rows)
        if node.index not in self.choices:
            first = op.start(box).unsqueeze(2)
            self.choices[node.index] = first.expand(-1, -1, 2, *first.shape[3:]).contiguous()
        chosen = self.choices[node.index]
        if not op.is_rectifier or box.lower.requires_grad:
            lines = op.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), chosen)
            return pull_lines(A, lines)
        if node.index not in self.fixed:
            zero = torch.zeros_like(box.lower).unsqueeze(1)
            lines = op.relax(box.lower.unsqueeze(1), box.upper.unsqueeze(1), zero.unsqueeze(0))
            self.fixed[node.index] = lines, op.is_loose(box).unsqueeze(1).to(zero.dtype)
        coefficients, constant = ChosenSlopes.apply(A, chosen[0], *self.fixed[node.index])
        return Pulled((coefficients,), constant)

    def _box(self, node: Node, rows: Rows) -> Box:
        """What each row sees of the box before an activation, once for all ``choices``."""
        if node.index not in self.boxes:
            full = self.state.boxes[node.inputs[0]]
            ends = rows.gather_all(*full) if isinstance(rows, Window) else map(rows.gather, full)
            self.boxes[node.index] = Box(*ends)
        return self.boxes[node.index]

    def choose(self, choices: dict[int, Tensor]) -> None:
        """Seek bounds by these choices, for other elements than before."""
        self.choices, self.boxes, self.fixed, self.seen = choices, {}, {}, None

    def _spread(self, front: Front) -> None:
        """Windows over more than half of a map become full rows."""
        for i, rows in front.pending.items():
            shape = self.graph.nodes[i].shape
            if isinstance(rows, Window) and 2 * rows.A[0, 0].numel() > torch.Size(shape).numel():
                front.pending[i] = spread_out(rows, shape)

    def _is_divisible(self, front: Front) -> bool:
        if any(p.only is not None for p in front.pending.values() if isinstance(p, Dense)):
            return False
        return len(front.which) > self._fitting(front) or self._own(front)

    def _fitting(self, front: Front) -> int:
        """Rows handled at once, twice as many where only one sign is sought."""
        return self.step() * (1 if front.side is None else 2)

    def _own(self, front: Front) -> bool:
        samples = int(front.sample[-1] - front.sample[0]) + 1
        return len(front.which) >= OWN_PASS * samples

    def _parts(self, front: Front) -> Iterator[Front]:
        """Rows of single samples, or of a few where each has few, in chunks."""
        index = torch.arange(len(front.which), device=front.which.device)
        if not self._own(front):
            yield from (front.rows(part) for part in index.split(self._fitting(front)))
            return
        counts = torch.unique_consecutive(front.sample, return_counts=True)[1].tolist()
        for own in index.split(counts):
            for part in own.split(self._fitting(front)):
                found = front.rows(part)
                only = int(found.sample[0])
                found.pending = {
                    i: p._replace(only=only) if isinstance(p, Dense) else p
                    for i, p in found.pending.items()
                }
                yield found

    def _may_settle(self, front: Front, node: Node) -> bool:
        if not self.settled or front.mirrored or node.op.is_affine or node.index == 0:
            return False
        return node.index not in self.fruitless

    def _sorted_out(self, front: Front, index: int) -> Front:
        """Bounds over the boxes of the pending nodes; only rows that these leave open go on.

        Nodes where hardly a row was settled are passed by after that.
        """
        value = front.constant - front.error
        for i, rows in front.pending.items():
            box = self.state.boxes[i]
            if isinstance(rows, Window):
                least = BoxRegion(*rows.gather_all(*box)).minimum(rows.A)
            else:
                least = rows.minimum(box)
            value = value + least
            if self.rounding:
                scale = scale_of(self.state, i)[front.sample]
                value = value - self.unit * scale * absolute_sum(rows.A)
        self._keep(front, value)
        assert self.settled is not None
        open_ = ~self.settled(self.low[front.which], self.high[front.which])
        if int(open_.sum()) > (1 - SETTLED) * len(open_):
            self.fruitless.add(index)
            return front
        return front.rows(open_.nonzero().squeeze(1))

    def _over_region(self, rows: Rows) -> Tensor:
        if isinstance(rows, Window):
            if self.choices is None:
                return self.region.windows(rows).minimum(rows.A)
            if self.seen is None:
                self.seen = self.region.windows(rows)
            return self.seen.minimum(rows.A)
        only = rows.only
        sample = rows.sample if only is None else slice(only, only + 1)
        return rows.split(self.region.rows(sample).minimum(rows.merged()))

    def _keep(self, front: Front, value: Tensor) -> None:
        """Best bounds of each element."""
        which, side = front.which, front.side
        if side is None:
            low, high = value[:, 0], -value[:, 1]
        else:
            found = value[:, 0]
            low, high = found.where(side > 0, -torch.inf), (-found).where(side < 0, torch.inf)
        self.low = self.low.index_put((which,), torch.fmax(self.low[which], low))
        self.high = self.high.index_put((which,), torch.fmin(self.high[which], high))
