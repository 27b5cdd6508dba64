"""Optimised relaxations: alpha-CROWN (Xu et al., 2021, arXiv:2011.13824) and beta-CROWN.

Every relaxation offers free choices in [0, 1] and every split constraint a multiplier >= 0 (Wang et
al., 2021, arXiv:2103.06624). All of them give sound bounds, so ``max_{alpha, beta} lower`` is
searched by Adam with projections in low precision, and only the final point has to be evaluated
rigorously.
"""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import Cuts, State, pull_back
from holdfast.verifiers.element_slopes import (
    MOMENTUM,
    RATE,
    SMALLEST,
    adam_step,
    keeps_rows,
    sharpened,
)
from holdfast.verifiers.propagation import loose_for, padded_index, plan_refinement
from holdfast.verifiers.regions import Region

# Step sizes of the searches for rows that are asked for.
RATES = (0.1, 0.3, 0.8)


@final
@dataclass(frozen=True, slots=True)
class Choices:
    """Free choices of a backward pass.

    Attributes:
        parameters: By node, ``(q, n, k or 1, *input of node)`` in [0, 1].
        multipliers: By node, ``(n, s)``, >= 0.
    """

    parameters: Mapping[int, Tensor]
    multipliers: Mapping[int, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> Choices:
        """The choices with a function applied to every tensor."""
        return Choices(
            {i: change(t) for i, t in self.parameters.items()},
            {i: change(t) for i, t in self.multipliers.items()},
        )


def default_choices(graph: Graph, state: State, start: int, rows: int = 1) -> Choices:
    """What the relaxations that ``start`` depends on choose by themselves, for ``rows`` rows."""
    found, behind = {}, {start}
    for node in reversed(graph.nodes[1 : start + 1]):
        if node.index not in behind:
            continue
        behind.update(node.inputs)
        if node.op.n_parameters:
            first = node.op.start(state.boxes[node.inputs[0]]).unsqueeze(2)
            found[node.index] = first.expand(-1, -1, rows, *node.shape).contiguous()
    return Choices(found, {})


def optimise(
    graph: Graph,
    start: int,
    A: Tensor,
    state: State,
    region: Region,
    choices: Choices,
    cuts: Mapping[int, Cuts] | None = None,
    steps: int = 20,
    rate: float = 0.1,
    momentum: float = 0.9,
    target: float = torch.inf,
) -> tuple[Choices, Tensor]:
    """Raises the lower bounds of ``A . value(start)``; any result is sound.

    Args:
        graph: The network.
        start: Node whose value is bounded.
        A: Coefficients ``(n, k, *start.shape)``.
        state: Boxes of the nodes before ``start``.
        region: Inputs.
        choices: Where to begin.
        cuts: Split constraints.
        steps: Gradient steps.
        rate: Step size of Adam; multipliers take half of it.
        momentum: Share of the gradients so far in the direction of a step.
        target: Rows above it are not pushed further.

    Returns:
        The best choices of every row and their bounds ``(n, k)``, without regard to rounding.
    """
    if not choices.parameters and not choices.multipliers:
        bound = pull_back(graph, start, A, state, rounding=False)
        return choices, region.minimum(bound.A) + bound.constant
    names = [("a", i) for i in choices.parameters] + [("b", i) for i in choices.multipliers]
    x = [choices.parameters[i] if kind == "a" else choices.multipliers[i] for kind, i in names]
    first, second = [torch.zeros_like(t) for t in x], [torch.full_like(t, SMALLEST) for t in x]
    best, best_value = x, A.new_full(A.shape[:2], -torch.inf)
    for step in range(steps + 1):
        x = [t.detach().requires_grad_(step < steps) for t in x]
        current = _named(names, x)
        with torch.set_grad_enabled(step < steps):
            bound = pull_back(
                graph,
                start,
                A,
                state,
                parameters=current.parameters,
                cuts=cuts,
                multipliers=current.multipliers,
                rounding=False,
            )
            value = region.minimum(bound.A) + bound.constant
            objective = value.clamp(max=target).sum()
        better = value.detach() > best_value
        best = [
            _select(better, t.detach(), b, kind)
            for t, b, (kind, _) in zip(x, best, names, strict=True)
        ]
        best_value = torch.where(better, value.detach(), best_value)
        if step == steps or bool((best_value > target).all()):
            break
        gradients = torch.autograd.grad(objective, x, allow_unused=True)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                size = rate * 0.98**step * (1.0 if names[i][0] == "a" else 0.5)
                args = (first[i], second[i], step + 1, size, momentum)
                moved = adam_step(x[i].detach(), gradient, *args)
                x[i] = moved.clamp_(0.0, 1.0 if names[i][0] == "a" else None)
    return _named(names, best), best_value


def optimise_rows(
    graph: Graph, start: int, A: Tensor, state: State, region: Region, steps: int
) -> Choices:
    """The best of a slow, a middling and a fast search from the default choices, row by row.

    The bound is piecewise smooth in the choices, and which step size comes closest to its best
    within few steps differs from row to row.
    """
    choices, value = default_choices(graph, state, start, A.shape[1]), A.new_full((), -torch.inf)
    best = choices
    for rate in RATES:
        args = (graph, start, A, state, region, choices)
        found, reached = optimise(*args, steps=steps, rate=rate, momentum=MOMENTUM)
        better = reached > value
        best = Choices(
            {i: _select(better, t, best.parameters[i], "a") for i, t in found.parameters.items()},
            {},
        )
        value = torch.where(better, reached, value)
    return best


def _named(names: list[tuple[str, int]], values: list[Tensor]) -> Choices:
    pairs = list(zip(names, values, strict=True))
    return Choices(
        {i: t for (kind, i), t in pairs if kind == "a"},
        {i: t for (kind, i), t in pairs if kind == "b"},
    )


def _select(better: Tensor, new: Tensor, old: Tensor, kind: str) -> Tensor:
    """The new choices of the rows that improved; shared choices follow any improvement."""
    if kind == "b":
        return torch.where(better.any(1, keepdim=True), new, old)
    mask = better if new.shape[2] == better.shape[1] else better.any(1, keepdim=True)
    return torch.where(mask.reshape(1, *mask.shape, *[1] * (new.dim() - 3)), new, old)


def sharpen(graph: Graph, region: Region, state: State, steps: int, rows: int = 256) -> State:
    """Tighter boxes of all nodes before non-linear ones, by optimised slopes.

    Slopes are sought without gradients; the boxes that they give are differentiable.

    Args:
        graph: The network in the precision of the region and the state.
        region: Inputs.
        state: Boxes found so far; they stay valid and are only cut.
        steps: Gradient steps per node.
        rows: Neurons optimised at once.
    """
    boxes = list(state.boxes)
    with torch.no_grad():
        quick, low_region = graph.to(torch.float32), region.to(torch.float32)
    for node, readers in zip(graph.nodes, plan_refinement(graph, region.is_box), strict=True):
        if not readers:
            continue
        state = replace_boxes(graph, state, boxes)
        box = state.boxes[node.index]
        loose = loose_for(readers, box)
        if keeps_rows(graph, node):
            search = (quick, low_precision(state), low_region)
            boxes[node.index] = sharpened((graph, state, region), search, node, loose, steps)
            continue
        index = padded_index(loose)
        lower, upper = flattened(box.lower), flattened(box.upper)
        for part in index.split(rows, 1) if index.shape[1] else ():
            unit = lower.new_zeros(len(part), part.shape[1], node.size)
            unit = unit.scatter(2, part.unsqueeze(2), 1.0).reshape(*part.shape, *node.shape)
            A = torch.cat([unit, -unit], 1)
            found = _optimised_bound(graph, quick, node.index, A, state, region, low_region, steps)
            low, high = found[:, : part.shape[1]], -found[:, part.shape[1] :]
            lower = lower.scatter(1, part, torch.fmax(lower.gather(1, part), low))
            upper = upper.scatter(1, part, torch.fmin(upper.gather(1, part), high))
        shape = box.lower.shape
        boxes[node.index] = Box(
            torch.minimum(lower, upper).reshape(shape), torch.maximum(lower, upper).reshape(shape)
        )
    return replace_boxes(graph, state, boxes)


def replace_boxes(graph: Graph, state: State, boxes: list[Box]) -> State:
    """Sharper boxes propagated to later nodes by intervals; magnitudes stay valid."""
    result: list[Box] = []
    for node, box in zip(graph.nodes, boxes, strict=True):
        if node.inputs and not node.op.rounds:
            box = node.op.interval(*(result[i] for i in node.inputs)).intersect(box)
        result.append(box)
    return replace(state, boxes=result, lines={})


def low_precision(state: State) -> State:
    """Boxes in float32, for searches whose results are evaluated again."""
    return State([Box(b.lower.detach().float(), b.upper.detach().float()) for b in state.boxes], [])


def _optimised_bound(
    graph: Graph,
    quick: Graph,
    start: int,
    A: Tensor,
    state: State,
    region: Region,
    low_region: Region,
    steps: int,
) -> Tensor:
    """Searches choices in float32, evaluates them with rounding in the state's precision."""
    with torch.no_grad():
        low_state = low_precision(state)
        choices = default_choices(quick, low_state, start, A.shape[1])
        args = (quick, start, A.float(), low_state, low_region, choices)
        choices, _ = optimise(*args, steps=steps, rate=RATE, momentum=MOMENTUM)
    exact = choices.map(lambda t: t.to(A.dtype))
    bound = pull_back(graph, start, A, state, parameters=exact.parameters, rounding=state.rounds)
    return region.minimum(bound.A) + bound.constant
