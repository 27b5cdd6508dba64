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
from holdfast.verifiers.alpha_crown import low_precision, replace_boxes
from holdfast.verifiers.crown import Cuts, State, pull_back
from holdfast.verifiers.dense import Dense, DenseLines, ascend, backward, condense
from holdfast.verifiers.domains import clip
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion

FIRST_STEPS = 30
STEPS = 10
# Elements of the coefficients of leaves bounded together.
ELEMENTS = 1 << 18
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
    """The undecided neurons of one node, seen from the inputs.

    Attributes:
        graph: The network up to the node, in float64.
        single: The same in float32.
        region: Inputs.
        state: What is known, in float64.
        neurons: Flat positions of the undecided neurons ``(r,)``.
        net: Rows ``z`` and ``-z`` of them.
        lower: Bounds of the undecided neurons before them ``(u,)``.
        upper: The same.
    """

    graph: Graph
    single: Graph
    region: BoxRegion
    state: State
    neurons: Tensor
    net: Dense
    lower: Tensor
    upper: Tensor

    def cost(self, count: int, steps: int) -> float:
        """Multiplications of bounding so many leaves."""
        return 2 * count * (steps + 1) * self.net.cost


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
    nodes = [n for n in graph.nodes[1:] if not n.op.is_affine]
    quick, left = graph.to(torch.float32), budget
    for k, node in enumerate(nodes):
        if is_over():
            break
        problem = _problem(graph, quick, region, state, node.inputs[0])
        if problem is None:
            continue
        share = left / (len(nodes) - k)
        leaves, spent = _search(problem, share, is_over)
        left -= spent
        boxes = list(state.boxes)
        boxes[node.inputs[0]] = _cut(problem, _exact(problem, leaves))
        state = replace_boxes(graph, state, boxes)
        if k < len(nodes) - 1:
            state = propagate(graph, region, known=state.boxes)
    return state, budget - left


def _problem(
    graph: Graph, quick: Graph, region: BoxRegion, state: State, at: int
) -> Problem | None:
    """Undecided neurons of a node; None where there are none or bounds are exact already."""
    box, nodes = state.boxes[at], graph.nodes
    neurons = ((box.lower < 0) & (box.upper > 0)).flatten().nonzero().squeeze(1)
    if not len(neurons):
        return None
    unit = torch.zeros(len(neurons), nodes[at].size).scatter(1, neurons.unsqueeze(1), 1.0)
    low, single = low_precision(state), Graph(quick.nodes[: at + 1])
    net = condense(
        single,
        State(low.boxes[: at + 1], []),
        torch.cat([unit, -unit]),
        None,
        torch.zeros(2 * len(unit)),
        (region.lower.flatten().float(), region.upper.flatten().float()),
    )
    if net is None or not any(len(k.b) for k in net.layers):
        return None
    lower, upper = (
        torch.cat([low.boxes[k.source][side].flatten()[k.neurons] for k in net.layers])
        for side in (0, 1)
    )
    first = State(state.boxes[: at + 1], state.magnitudes[: at + 1])
    return Problem(Graph(nodes[: at + 1]), single, region, first, neurons, net, lower, upper)


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
        reached[worst.row] = torch.minimum(reached[worst.row], _reach(problem, worst.row, A))
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
            reached[again.row[still]] = -torch.inf
        leaves = Leaves.join(parts)
    return leaves, spent


def _worst(leaves: Leaves, reached: Tensor) -> Tensor:
    """Position of the worst leaf of every row that is still worth a split."""
    order = leaves.value.argsort()
    order = order[leaves.row[order].argsort(stable=True)]
    row = leaves.row[order]
    first = torch.ones(len(row), dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    pick = order[first]
    value = leaves.value[pick]
    # The other side of the range is the row half of them further on.
    width = -(value + value.roll(len(value) // 2))
    return pick[(value <= 0) & (reached - value > CLOSE * width)]


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
    x = problem.net.middle - A.sign() * problem.net.radius
    z = flattened(problem.single(x.reshape(-1, *problem.graph.input_shape)))
    r = len(problem.neurons)
    value = z.gather(1, problem.neurons[row % r].unsqueeze(1)).squeeze(1)
    return torch.where(row < r, value, -value)


def _halves(leaves: Leaves, place: Tensor) -> Leaves:
    """Both sides of a split of each leaf."""
    both = leaves.at(torch.arange(len(leaves)).repeat(2))
    side = torch.ones(len(both)).index_fill(0, torch.arange(len(leaves), len(both)), -1.0)
    both.sign.scatter_(1, place.repeat(2).unsqueeze(1), side.unsqueeze(1))
    return both


def _exact(problem: Problem, leaves: Leaves) -> Tensor:
    """Least value of every row over its leaves, in float64 with rounding errors ``(rows,)``."""
    graph, at = problem.graph, len(problem.graph.nodes) - 1
    widest = max(n.size for n in graph.nodes)
    low = torch.full((2 * len(problem.neurons),), torch.inf, dtype=torch.float64)
    for index in torch.arange(len(leaves)).split(max(1, (1 << 22) // widest)):
        part = leaves.at(index)
        m, r = len(part), len(problem.neurons)
        unit = torch.zeros(m, graph.nodes[at].size, dtype=torch.float64)
        side = torch.where(part.row < r, 1.0, -1.0).double()
        unit.scatter_(1, problem.neurons[part.row % r].unsqueeze(1), side.unsqueeze(1))
        state, parameters, cuts, multipliers = _dissolve(problem, part)
        bound = pull_back(
            graph,
            at,
            unit.reshape(m, 1, *graph.nodes[at].shape),
            state,
            parameters=parameters,
            cuts=cuts,
            multipliers=multipliers,
        )
        region = problem.region.rows(torch.zeros(m, dtype=torch.long))
        value = (region.minimum(bound.A) + bound.constant)[:, 0]
        # A bound that is no number says nothing.
        low = low.scatter_reduce(0, part.row, value.nan_to_num(-torch.inf), "amin")
    return low


def _dissolve(
    problem: Problem, leaves: Leaves
) -> tuple[State, dict[int, Tensor], dict[int, Cuts], dict[int, Tensor]]:
    """The leaves' boxes, slopes, splits and multipliers in the form of the graph."""
    m, net = len(leaves), problem.net
    boxes = [Box(*(t.expand(m, *t.shape[1:]) for t in box)) for box in problem.state.boxes]
    magnitudes = [None if t is None else t.expand(m, 1) for t in problem.state.magnitudes]
    parameters: dict[int, Tensor] = {}
    cuts: dict[int, Cuts] = {}
    multipliers: dict[int, Tensor] = {}
    for layer, (i, j) in zip(net.layers, net.spans(), strict=True):
        node = problem.graph.nodes[layer.node]
        full = torch.zeros(m, node.size, dtype=torch.float64)
        full[:, layer.neurons] = leaves.alpha[:, i:j].double()
        parameters[layer.node] = full.reshape(1, m, 1, *node.shape)
        sign = leaves.sign[:, i:j].double()
        cuts[layer.source] = Cuts(layer.neurons.expand(m, -1), sign, torch.zeros_like(sign))
        multipliers[layer.source] = leaves.beta[:, i:j].double()
        boxes[layer.source] = clip(boxes[layer.source], cuts[layer.source])
    return State(boxes, magnitudes), parameters, cuts, multipliers


def _cut(problem: Problem, low: Tensor) -> Box:
    """The node's box cut with the rows' bounds."""
    box, r = problem.state.boxes[-1], len(problem.neurons)
    lower, upper = flattened(box.lower).clone(), flattened(box.upper).clone()
    lower[0, problem.neurons] = torch.fmax(lower[0, problem.neurons], low[:r])
    upper[0, problem.neurons] = torch.fmin(upper[0, problem.neurons], -low[r:])
    shape = box.lower.shape
    return Box(
        torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
    )
