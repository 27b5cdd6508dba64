"""Optimised slopes for single elements: every row has choices of its own, as large as its window.

Slopes are sought in low precision; what counts is the bound evaluated with them afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import State
from holdfast.verifiers.elements import Elements
from holdfast.verifiers.propagation import relaxes_rows
from holdfast.verifiers.regions import Region

RATE, MOMENTUM = 0.3, 0.7
"""Of Adam where slopes start from their defaults: few steps have to cross the whole range."""
ROUND, LEAST_GAIN = 5, 1e-3
"""Rows of which neither side rose by this share of their range within so many steps are left."""

SMALLEST = 1e-30
"""Where second moments begin, so that elements without any gradient stay where they are."""


def keeps_rows(graph: Graph, node: Node) -> bool:
    """Whether rows of coefficients lose nothing where each goes back to the input alone."""
    return all(relaxes_rows(n) for n in graph.nodes[1 : node.index + 1])


def sharpened(
    exact: tuple[Graph, State, Region],
    quick: tuple[Graph, State, Region],
    node: Node,
    loose: Tensor,
    steps: int,
) -> Box:
    """The node's box with its loose elements bounded by slopes optimised for each of them.

    Args:
        exact: Network, boxes and inputs in the precision of the result.
        quick: The same in low precision, for the search; without gradients.
        node: The node.
        loose: Which elements, ``(n, size)``.
        steps: Gradient steps.
    """
    pairs, box = loose.nonzero(), exact[1].boxes[node.index]
    proof = Elements(exact[0], node.index, exact[1], exact[2], None, exact[1].rounds)
    search = Elements(quick[0], node.index, quick[1], quick[2], None, rounding=False)
    values = []
    for part in pairs.split(proof.step()) if len(pairs) else ():
        choices = _searched(search, part, steps)
        proof.choose({i: t.to(box.lower.dtype) for i, t in choices.items()})
        values.append(proof.least(part))
    if not values:
        return box
    low, high = torch.cat(values).unbind(1)
    at = (pairs[:, 0], pairs[:, 1])
    lower, upper = flattened(box.lower), flattened(box.upper)
    lower = lower.index_put(at, torch.fmax(lower[at], low)).reshape(box.lower.shape)
    upper = upper.index_put(at, torch.fmin(upper[at], -high)).reshape(box.upper.shape)
    return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))


def _searched(elements: Elements, pairs: Tensor, steps: int) -> dict[int, Tensor]:
    """The best choices of every row and side that Adam comes across."""
    best: dict[int, Tensor] = {}
    elements.choose(best)
    with torch.no_grad():
        best_value = elements.least(pairs)
    box, at = elements.state.boxes[elements.start], (pairs[:, 0], pairs[:, 1])
    worth = LEAST_GAIN * (flattened(box.upper)[at] - flattened(box.lower)[at]).unsqueeze(1)
    active = torch.arange(len(pairs), device=pairs.device)
    climb = _Climb.begin(best)
    for begin in range(0, steps if best else 0, ROUND):
        before = best_value[active]
        for step in range(begin + 1, min(begin + ROUND, steps) + 1):
            found, value = climb.step(elements, pairs[active], step)
            _keep(best, best_value, active, found, value)
        gains = (best_value[active] - before > worth[active]).any(1)
        if begin + ROUND < steps and not bool(gains.all()):
            active, climb = active[gains], climb.rows(gains)
            elements.choose(climb.current)
        if not len(active):
            return best
    with torch.no_grad():
        elements.choices = dict(climb.current)
        _keep(best, best_value, active, climb.current, elements.least(pairs[active]))
    return best


@dataclass(slots=True)
class _Climb:
    """Choices on their way up with both moments of Adam, each ``(q, r, 2, *window)`` by node."""

    current: dict[int, Tensor]
    first: dict[int, Tensor]
    second: dict[int, Tensor]

    @classmethod
    def begin(cls, choices: dict[int, Tensor]) -> Self:
        return cls(
            {i: t.clone() for i, t in choices.items()},
            {i: torch.zeros_like(t) for i, t in choices.items()},
            {i: torch.full_like(t, SMALLEST) for i, t in choices.items()},
        )

    def step(
        self, elements: Elements, pairs: Tensor, step: int
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The choices before the step and their values ``(r, 2)``."""
        leaves = {i: t.requires_grad_(True) for i, t in self.current.items()}
        elements.choices = dict(leaves)
        with torch.enable_grad():
            value = elements.least(pairs)
            objective = value.sum()
        gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        size = RATE * 0.98 ** (step - 1)
        with torch.no_grad():
            self.current = {
                i: adam_step(
                    t.detach(), g, self.first[i], self.second[i], step, size, MOMENTUM
                ).clamp_(0, 1)
                for (i, t), g in zip(leaves.items(), gradients, strict=True)
            }
        return {i: t.detach() for i, t in leaves.items()}, value.detach()

    def rows(self, mask: Tensor) -> _Climb:
        """The rows ``(r,)`` that go on."""
        parts = (self.current, self.first, self.second)
        return _Climb(*({i: t[:, mask] for i, t in part.items()} for part in parts))


def _keep(
    best: dict[int, Tensor],
    best_value: Tensor,
    rows: Tensor,
    new: dict[int, Tensor],
    value: Tensor,
) -> None:
    """Puts choices and values of the sides of ``rows`` that improved in place of the best."""
    better = value > best_value[rows]
    best_value[rows] = torch.where(better, value, best_value[rows])
    for i, t in new.items():
        mask = better.reshape(1, *better.shape, *[1] * (t.dim() - 3))
        best[i][:, rows] = torch.where(mask, t, best[i][:, rows])


def adam_step(
    x: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    size: float,
    momentum: float,
) -> Tensor:
    """A step of Adam upwards (Kingma & Ba, 2015); updates both moments in place.

    The second begins at ``SMALLEST``, in place of a constant in the denominator. Written out since
    importing ``torch.optim`` costs seconds and holds per-parameter state.
    """
    first.lerp_(gradient, 1 - momentum)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    share = (1 - 0.999**step) ** 0.5 / (1 - momentum**step)
    return torch.addcdiv(x, first, second.sqrt(), value=size * share)
