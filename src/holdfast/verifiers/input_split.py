"""Branch and bound over the input box, for networks with few inputs.

Hundreds of parts are bounded together; each is closed when every clause has a row proven to be
positive. Rows that stay open are bounded again with slopes optimised for them, which costs little
beside the bounds of all neurons, and the box is clipped to where linear bounds allow a violation.
What is left is halved where the rows' default bounds lose most: ``|A_i| (u_i - l_i)``, with small
coefficients raised to a tenth of the largest, as they stand for what relaxation hid. Optimised
bounds would not do there, since they are flat in inputs that matter.
"""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.operator import Box
from holdfast.verifiers.attack import descend
from holdfast.verifiers.clipping import clipped
from holdfast.verifiers.problem import Counterexample, Leaf
from holdfast.verifiers.search import Search
from holdfast.verifiers.sub_boxes import Bounded, RowBounder, SubBoxes

BATCH = 256
LEAST_COEFFICIENT = 0.1  # relative to the largest; see the module's docstring
# Gradients are followed in every round from so many parts by bound and by value, so many steps.
STARTS, DESCENT = 64, 20


@torch.no_grad()
def split_inputs(search: Search, clauses: Tensor) -> Counterexample | bool:
    """Decides clauses that share one input box.

    Args:
        search: The property and its clock.
        clauses: Positions of the clauses in the property ``(c,)``.

    Returns:
        A counterexample, True when all clauses are proven, False when the time is up.
    """
    lower, upper = search.rows.lower[clauses[:1]], search.rows.upper[clauses[:1]]
    opened = torch.ones(1, len(clauses), dtype=torch.bool)
    stack, bounder = [SubBoxes(lower, upper, opened)], RowBounder(search, clauses)
    rounds = 0
    while stack:
        if search.is_over():
            return False
        if rounds % 2:
            # Depth first keeps the stack short; every other round the worst bound goes first, as
            # counterexamples hide there.
            stack.append(stack.pop(min(range(len(stack)), key=lambda i: stack[i].worst)))
        left = _narrowed(search, bounder, _pop(stack))
        if not len(left.parts):
            continue
        found = _look(search, clauses, left)
        if found is not None:
            return found
        stack.append(_split(left))
        rounds += 1
    return True


def _narrowed(search: Search, bounder: RowBounder, parts: SubBoxes) -> Bounded:
    """What is open of the parts."""
    left = bounder.bound(parts)
    _collect(search, bounder.clauses, left)
    left = left.without_proven()
    if not len(left.parts):
        return left
    left = bounder.improved(left)
    _collect(search, bounder.clauses, left)
    left = left.without_proven()
    return left if search.keep_leaves or not len(left.parts) else _clipped(left)


def _pop(stack: list[SubBoxes]) -> SubBoxes:
    """Up to ``BATCH`` parts from the top, which keeps the stack short."""
    parts = [stack.pop()]
    while stack and sum(map(len, parts)) + len(stack[-1]) <= BATCH:
        parts.append(stack.pop())
    joined = _join(parts) if len(parts) > 1 else parts[0]
    if len(joined) > BATCH:
        order = torch.arange(len(joined))
        stack.append(joined.rows(order[BATCH:]))
        joined = joined.rows(order[:BATCH])
    return joined


def _join(parts: list[SubBoxes]) -> SubBoxes:
    boxes = [
        Box(torch.cat([b.lower for b in group]), torch.cat([b.upper for b in group]))
        for group in zip(*(p.boxes for p in parts), strict=True)
    ]
    lower, upper, opened = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("lower", "upper", "open")
    )
    return SubBoxes(lower, upper, opened, boxes, min(p.worst for p in parts))


def _collect(search: Search, clauses: Tensor, bounded: Bounded) -> None:
    """Keeps a leaf for every clause that became proven on a part."""
    if not search.keep_leaves:
        return
    parts = bounded.parts
    for i, j in (parts.open & (bounded.value > 0)).nonzero().tolist():
        clause, row = int(clauses[j]), int(bounded.best[i, j])
        weights = np.zeros(len(search.prop.clauses[clause].d))
        weights[min(row, len(weights) - 1)] = 1.0
        search.leaves.append(
            Leaf(
                clause,
                parts.lower[i].numpy(),
                parts.upper[i].numpy(),
                weights,
                float(bounded.value[i, j]),
                slopes={node: t[i, j, row].numpy() for node, t in bounded.slopes.items()},
            )
        )


def _look(search: Search, clauses: Tensor, left: Bounded) -> Counterexample | None:
    """Tries the centre and the corner of least bound of every part; descends from the best ones.

    These are the parts with the least bounds and those with the least values found.
    """
    if not search.look:
        return None
    lower, upper = left.parts.lower, left.parts.upper
    n = torch.arange(len(lower))
    local = left.value.masked_fill(~left.parts.open, torch.inf).argmin(1)
    clause, A = clauses[local], left.A[n, local, left.best[n, local]]
    points = torch.stack([torch.where(A > 0, lower, upper), (lower + upper) / 2])
    flat = points.flatten(0, 1)
    found = search.check(clause.repeat(2), flat)
    if found is not None:
        return found
    value, which = search.worst(clause.repeat(2), flat).reshape(2, -1).min(0)
    ends = left.value[n, local].argsort()[:STARTS], value.argsort()[:STARTS]
    chosen = torch.cat(ends).unique()
    lo, hi, at = lower[chosen].float(), upper[chosen].float(), clause[chosen]
    start = points[which[chosen], chosen].float()
    x, _ = descend(search.single, search.rows32, at, start, lo, hi, DESCENT)
    return search.check(at, x)


def _clipped(left: Bounded) -> Bounded:
    """The parts within the least box around what their open clauses leave of them."""
    parts, (A, b) = left.parts, left.limits
    n, c = b.shape[:2]
    lower, upper = (t.repeat_interleave(c, 0) for t in (parts.lower, parts.upper))
    inner = clipped(Box(lower, upper), A.flatten(0, 1), b.flatten(0, 1))
    opened = parts.open & (inner.lower <= inner.upper).all(1).reshape(n, c)
    outside = ~opened.unsqueeze(2)
    lower = inner.lower.reshape(n, c, -1).masked_fill(outside, torch.inf).amin(1)
    upper = inner.upper.reshape(n, c, -1).masked_fill(outside, -torch.inf).amax(1)
    parts = replace(parts, lower=lower, upper=upper, open=opened)
    return replace(left, parts=parts).rows(opened.any(1).nonzero().squeeze(1))


def _split(left: Bounded) -> SubBoxes:
    """Halves every part in the input with the highest score; in more while they are few."""
    parts = replace(left.parts, boxes=left.state.boxes)
    A = left.A.abs().sum(2)
    A = torch.maximum(A, LEAST_COEFFICIENT * A.amax(2, keepdim=True))
    score = (A * parts.open.unsqueeze(2)).sum(1) * (parts.upper - parts.lower)
    worst = left.value.masked_fill(~parts.open, torch.inf).amin(1)
    order = worst.argsort()
    parts, score = replace(parts, worst=float(worst.min())).rows(order), score[order]
    for _ in range(3 if len(order) < 8 else 1):
        parts, score = _halve(parts, score)
    return parts


def _halve(parts: SubBoxes, score: Tensor) -> tuple[SubBoxes, Tensor]:
    axis = score.argmax(1, keepdim=True)
    middle = (parts.lower.gather(1, axis) + parts.upper.gather(1, axis)) / 2
    n = len(parts)
    both = parts.rows(torch.arange(n).repeat_interleave(2))
    twice = torch.arange(2 * n) % 2
    first, second = (twice == 0).nonzero().squeeze(1), (twice == 1).nonzero().squeeze(1)
    both.upper[first] = both.upper[first].scatter(1, axis, middle)
    both.lower[second] = both.lower[second].scatter(1, axis, middle)
    score = score.scatter(1, axis, score.gather(1, axis) / 2).repeat_interleave(2, 0)
    return both, score
