"""Bounds of single neurons by branch and bound of their own.

Relaxations of early layers add up: in deep fully connected networks most neurons of late layers
look undecided although none of them changes its sign. Splitting for the property repairs that for
one neuron at a time. So every undecided neuron is bounded as if it were a property, from the first
layer on: each side of its range is a row with leaves of its own, and the worst leaf of every row is
split in each round, all rows in one batch. Tools with commercial solvers do the same by mixed
integer programs (Tjeng et al., 2019, arXiv:1711.07356).

The search runs in float32 on the dense form; the leaves that it ends with are bounded again in
float64 with rounding errors, and only that enters the boxes.
"""
# ruff: noqa: N803, N806 - A and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.alpha_crown import replace_boxes
from holdfast.verifiers.crown import State
from holdfast.verifiers.dense import Dense, DenseLines, ascend, backward, condense, evaluate
from holdfast.verifiers.dense_parts import parts
from holdfast.verifiers.dense_proof import least
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion

FIRST_STEPS = 30
STEPS = 10
# Elements of the coefficients of leaves bounded together.
ELEMENTS = 1 << 18
# Leaves split in one round, where few rows have that many, and most of them of one row.
LEAVES = 512
MOST_LEAVES = 32
# What calling the operations of one pass costs, in multiplications.
CALL = 2e5
# Elements of all leaves of one layer together.
MOST_ELEMENTS = 1 << 25
# Share of a neuron's range by which its bound may miss a value that was reached.
CLOSE = 0.02


@final
@dataclass(slots=True)
class Leaves:
    """Parts of the input box, each of one row.

    Attributes:
        row: The row ``(m,)``: neurons' lower bounds first, then their negated upper bounds.
        sign: Splits of undecided neurons ``(m, u)``, 0 where there is none.
        alpha: Slopes ``(m, u)``.
        beta: Multipliers ``(m, u)``.
        value: Lower bound in float32 ``(m,)``.
    """

    row: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def at(self, index: Tensor) -> Leaves:
        """Those at ``index``."""
        return Leaves(*(getattr(self, f.name)[index] for f in fields(self)))

    def without(self, index: Tensor) -> Leaves:
        """All but those at ``index``."""
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[index] = False
        return self.at(kept)

    @staticmethod
    def join(parts: list[Leaves]) -> Leaves:
        """All of several."""
        return Leaves(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Leaves)))


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """Undecided neurons of one node, seen from the inputs.

    Attributes:
        neurons: Flat positions of the neurons ``(r,)``.
        proof: Rows ``z`` and ``-z`` of them in float64, with rounding errors.
        net: The same in float32, for the search.
        box: Bounds of the undecided neurons before them ``(u,)`` in float64.
        lower: The same in float32.
        upper: The same.
    """

    neurons: Tensor
    proof: Dense
    net: Dense
    box: tuple[Tensor, Tensor]
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, neurons: Tensor, proof: Dense, box: tuple[Tensor, Tensor]) -> Problem:
        """With copies for the search."""
        low, high = box[0].float(), box[1].float()
        return cls(neurons, proof, proof.to(torch.float32), box, low, high)

    def cost(self, count: int, steps: int) -> float:
        """Multiplications of bounding so many leaves, calls counted as some."""
        return 2 * (steps + 1) * (count * self.net.cost + CALL)


@torch.no_grad()
def refine(
    graph: Graph, region: BoxRegion, state: State, budget: float, is_over: Callable[[], bool]
) -> tuple[State, float]:
    """Tighter boxes of all undecided neurons of a rectifier network.

    Args:
        graph: The network in float64.
        region: One box of inputs.
        state: Boxes that hold on it.
        budget: Multiplications to spend, about.
        is_over: Whether the time is up.

    Returns:
        Boxes cut with what was found, and what was spent.
    """
    nodes, left = [n for n in graph.nodes[1:] if not n.op.is_affine], budget
    for k, node in enumerate(nodes):
        if is_over():
            break
        problems = _problems(graph, region, state, node.inputs[0])
        if not problems:
            continue
        boxes, end = list(state.boxes), left - left / (len(nodes) - k)
        for i, problem in enumerate(problems):
            leaves, spent = _search(problem, (left - end) / (len(problems) - i), is_over)
            left -= spent
            boxes[node.inputs[0]] = _cut(boxes[node.inputs[0]], problem, _exact(problem, leaves))
        state = replace_boxes(graph, state, boxes)
        if k < len(nodes) - 1:
            state = propagate(graph, region, known=state.boxes)
    return state, budget - left


def _problems(graph: Graph, region: BoxRegion, state: State, at: int) -> list[Problem]:
    """Undecided neurons of a node by what they read; none where bounds are exact already."""
    box, nodes = state.boxes[at], graph.nodes
    neurons = ((box.lower < 0) & (box.upper > 0)).flatten().nonzero().squeeze(1)
    if not len(neurons) or all(n.op.is_affine for n in nodes[1 : at + 1]):
        return []
    unit = box.lower.new_zeros(len(neurons), nodes[at].size)
    unit = unit.scatter(1, neurons.unsqueeze(1), 1.0)
    net = condense(
        Graph(nodes[: at + 1]),
        State(state.boxes[: at + 1], state.magnitudes[: at + 1]),
        torch.cat([unit, -unit]),
        None,
        unit.new_zeros(2 * len(unit)),
        (region.lower.flatten(), region.upper.flatten()),
    )
    if net is None or not any(len(k.b) for k in net.layers):
        return []
    ends = [
        torch.cat([state.boxes[k.source][side].flatten()[k.neurons] for k in net.layers])
        for side in (0, 1)
    ]
    found = []
    for part, own in parts(net):
        if not len(part.neurons):
            continue  # nothing before these is split: their linear bounds are exact
        mine = neurons[part.rows[: len(part.rows) // 2]]
        found.append(Problem.of(mine, own, (ends[0][part.neurons], ends[1][part.neurons])))
    return found


def _search(problem: Problem, budget: float, is_over: Callable[[], bool]) -> tuple[Leaves, float]:
    """Splits the worst leaf of every open row until the budget is spent."""
    rows, u = 2 * len(problem.neurons), len(problem.lower)
    alpha = (problem.upper > -problem.lower).float().expand(rows, -1)
    zeros = torch.zeros(rows, u)
    leaves = Leaves(torch.arange(rows), zeros, alpha, zeros, torch.full((rows,), -torch.inf))
    leaves = _solve(problem, leaves, FIRST_STEPS)
    spent, reached = problem.cost(rows, FIRST_STEPS), torch.full((rows,), torch.inf)
    while spent < budget and len(leaves) * u < MOST_ELEMENTS and not is_over():
        pick = _worst(leaves, reached)
        if not len(pick):
            break
        worst = leaves.at(pick)
        A, score = _losses(problem, worst)
        at = _reach(problem, worst.row, A)
        reached = reached.scatter_reduce(0, worst.row, at, "amin")
        best, place = score.max(1)
        can = best > 0
        parts = [leaves.without(pick)]
        if bool(can.any()):
            parts.append(_solve(problem, _halves(worst.at(can), place[can]), STEPS))
            spent += problem.cost(len(parts[-1]), STEPS)
        if not bool(can.all()):
            # Nothing is left to split: the multipliers are not at their best, or it is empty.
            again = worst.at(~can)
            parts.append(_solve(problem, again, FIRST_STEPS))
            spent += problem.cost(len(again), FIRST_STEPS)
            still = parts[-1].value - again.value < CLOSE * again.value.abs()
            # The row will not rise above what cannot be raised.
            end = parts[-1].at(still)
            reached = reached.scatter_reduce(0, end.row, end.value, "amin")
        leaves = Leaves.join(parts)
    return leaves, spent


def _worst(leaves: Leaves, reached: Tensor) -> Tensor:
    """Positions of the worst leaves of every row that are still worth a split."""
    order = leaves.value.argsort()
    order = order[leaves.row[order].argsort(stable=True)]
    row, rows = leaves.row[order], len(reached)
    first = torch.searchsorted(row, torch.arange(rows))
    pick = order[torch.arange(len(row)) - first[row] < max(1, min(MOST_LEAVES, LEAVES // rows))]
    worst = leaves.value[order[first]]
    # The other side of the range is the row half of them further on.
    width = -(worst + worst.roll(rows // 2))
    value, row = leaves.value[pick], leaves.row[pick]
    return pick[(value <= 0) & (reached[row] - value > CLOSE * width[row])]


def _solve(problem: Problem, leaves: Leaves, steps: int) -> Leaves:
    """The leaves with optimised choices."""
    size = max(16, ELEMENTS // problem.net.rows.shape[1])
    parts = []
    for index in torch.arange(len(leaves)).split(size):
        part = leaves.at(index)
        found = ascend(problem.net, part.row, _lines(problem, part), part.alpha, part.beta, steps)
        parts.append(Leaves(part.row, part.sign, *found))
    return Leaves.join(parts)


def _lines(problem: Problem, leaves: Leaves) -> DenseLines:
    shape = leaves.sign.shape
    return DenseLines.of(problem.lower.expand(shape), problem.upper.expand(shape), leaves.sign)


def _losses(problem: Problem, leaves: Leaves) -> tuple[Tensor, Tensor]:
    """Coefficients of the inputs, and what every neuron's lines lose ``(m, u)``; -1 for none."""
    lines, p = _lines(problem, leaves), problem.net.n_inputs
    _, A = backward(problem.net, leaves.row, lines, leaves.alpha, leaves.beta)
    a = A[:, p:]
    ends = torch.minimum((1 - leaves.alpha) * problem.upper, -leaves.alpha * problem.lower)
    score = (-a).relu() * lines.intercept + 0.5 * a.relu() * ends.relu()
    return A[:, :p], torch.where(lines.loose > 0, score, -1.0)


def _reach(problem: Problem, row: Tensor, A: Tensor) -> Tensor:
    """Values of the rows at the corners that attain their bounds ``(m,)``."""
    return evaluate(problem.net, row, problem.net.middle - A.sign() * problem.net.radius)


def _halves(leaves: Leaves, place: Tensor) -> Leaves:
    """Both sides of a split of each leaf."""
    both = leaves.at(torch.arange(len(leaves)).repeat(2))
    side = torch.ones(len(both)).index_fill(0, torch.arange(len(leaves), len(both)), -1.0)
    both.sign.scatter_(1, place.repeat(2).unsqueeze(1), side.unsqueeze(1))
    return both


def _exact(problem: Problem, leaves: Leaves) -> Tensor:
    """Least value of every row over its leaves, in float64 with rounding errors ``(rows,)``."""
    low = problem.proof.rows.new_full((2 * len(problem.neurons),), torch.inf)
    for index in torch.arange(len(leaves)).split(max(16, ELEMENTS // leaves.sign.shape[1])):
        part = leaves.at(index)
        choices = (t.double() for t in (part.sign, part.alpha, part.beta))
        value = least(problem.proof, part.row, problem.box, *choices)
        # A bound that is no number says nothing.
        low = low.scatter_reduce(0, part.row, value.nan_to_num(-torch.inf), "amin")
    return low


def _cut(box: Box, problem: Problem, low: Tensor) -> Box:
    """The node's box cut with the rows' bounds."""
    r = len(problem.neurons)
    lower, upper = flattened(box.lower).clone(), flattened(box.upper).clone()
    lower[0, problem.neurons] = torch.fmax(lower[0, problem.neurons], low[:r])
    upper[0, problem.neurons] = torch.fmin(upper[0, problem.neurons], -low[r:])
    shape = box.lower.shape
    return Box(
        torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
    )
