"""Optimised slopes for single elements: every row has choices of its own, as large as its window.

Slopes are sought in low precision; what counts is the bound evaluated with them afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph, Node
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.crown import State
from holdfast.verifiers.elements import Elements
from holdfast.verifiers.propagation import relaxes_rows
from holdfast.verifiers.regions import Region

RATE = 0.5
"""Step size where slopes start from their defaults; twenty steps then cross the whole range."""


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
    current = {i: t.clone() for i, t in best.items()}
    first = {i: torch.zeros_like(t) for i, t in best.items()}
    second = {i: torch.full_like(t, SMALLEST) for i, t in best.items()}
    for step in range(1, steps + 1 if best else 0):
        with torch.enable_grad():
            leaves = {i: t.requires_grad_(True) for i, t in current.items()}
            elements.choices = dict(leaves)
            value = elements.least(pairs)
            gradients = torch.autograd.grad(
                value.sum(), list(leaves.values()), materialize_grads=True
            )
        with torch.no_grad():
            if step > 1:
                best_value = _kept(best, leaves, best_value, value)
            for (i, t), gradient in zip(leaves.items(), gradients, strict=True):
                size = RATE * 0.98 ** (step - 1)
                moved = adam_step(t.detach(), gradient, first[i], second[i], step, size)
                current[i] = moved.clamp_(0.0, 1.0)
    with torch.no_grad():
        elements.choices = dict(current)
        _kept(best, current, best_value, elements.least(pairs))
    return best


def _kept(
    best: dict[int, Tensor], new: dict[int, Tensor], best_value: Tensor, value: Tensor
) -> Tensor:
    """Puts the choices of the rows that improved into ``best``; returns the best values."""
    better = value > best_value
    for i, t in new.items():
        mask = better.reshape(1, *better.shape, *[1] * (t.dim() - 3))
        best[i].lerp_(t.detach(), mask.to(t.dtype))
    return torch.where(better, value.detach(), best_value)


def adam_step(
    x: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    size: float,
    momentum: float = 0.9,
) -> Tensor:
    """A step of Adam upwards (Kingma & Ba, 2015); updates both moments in place.

    The second begins at ``SMALLEST``, in place of a constant in the denominator. Written out since
    importing ``torch.optim`` costs seconds and holds per-parameter state.
    """
    first.lerp_(gradient, 1 - momentum)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    share = (1 - 0.999**step) ** 0.5 / (1 - momentum**step)
    return torch.addcdiv(x, first, second.sqrt(), value=size * share)
