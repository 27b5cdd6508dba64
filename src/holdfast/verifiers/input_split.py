"""Branch and bound over the input box, for networks with few inputs.

Thousands of sub-boxes are bounded together; each is closed when every clause has a row proven to be
positive, and cut otherwise where the row's linear bound loses most: ``|A_i| (u_i - l_i)``, with
small coefficients raised to a tenth of the largest, as they stand for what relaxation hid.
"""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.operator import Box
from holdfast.verifiers.attack import descend
from holdfast.verifiers.clipping import clipped
from holdfast.verifiers.crown import pull_back
from holdfast.verifiers.problem import Counterexample, Leaf
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

BATCH = 256
LEAST_COEFFICIENT = 0.1  # relative to the largest; see the module's docstring
# Rounds between two gradient searches inside the worst sub-boxes; the first come earlier.
DESCEND_EVERY = 16


@final
@dataclass(frozen=True, slots=True)
class _Domains:
    """Sub-boxes of one clause box.

    Attributes:
        lower: Least inputs ``(n, p)``.
        upper: Greatest inputs ``(n, p)``.
        open: Clauses not proven yet ``(n, c)``.
        boxes: Bounds of all nodes on a larger box, or nothing at the root.
        worst: Least bound that their parents had.
    """

    lower: Tensor
    upper: Tensor
    open: Tensor
    boxes: list[Box]
    worst: float = -float("inf")

    def rows(self, index: Tensor) -> _Domains:
        boxes = [Box(b.lower[index], b.upper[index]) for b in self.boxes]
        return _Domains(self.lower[index], self.upper[index], self.open[index], boxes, self.worst)

    def __len__(self) -> int:
        return len(self.lower)


@final
@dataclass(frozen=True, slots=True)
class _Bounded:
    """Sub-boxes after bounding.

    Attributes:
        domains: The sub-boxes.
        value: Least value of the best row ``(n, c)``.
        best: Which that is ``(n, c)``.
        A: Its coefficients ``(n, c, p)``.
        rows: Linear bounds of all rows: coefficients ``(n, c, r, p)`` and constants ``(n, c, r)``.
    """

    domains: _Domains
    value: Tensor
    best: Tensor
    A: Tensor
    rows: tuple[Tensor, Tensor]


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
    stack = [_Domains(lower, upper, opened, [])]
    rounds = 0
    while stack:
        if search.is_over():
            return False
        if rounds % 2:
            # Depth first keeps the stack short; every other round the worst bound goes first, as
            # counterexamples hide there.
            stack.append(stack.pop(min(range(len(stack)), key=lambda i: stack[i].worst)))
        bounded = _bound(search, clauses, _pop(stack))
        _collect(search, clauses, bounded)
        keep = (bounded.domains.open & (bounded.value <= 0)).any(1).nonzero().squeeze(1)
        if not len(keep):
            continue
        found = _look(search, clauses, bounded, keep, _is_turn(rounds))
        if found is not None:
            return found
        if not search.keep_leaves:
            bounded = _clip(bounded, keep)
            keep = bounded.domains.open.any(1).nonzero().squeeze(1)
            if not len(keep):
                continue
        stack.append(_split(bounded, keep))
        rounds += 1
    return True


def _is_turn(rounds: int) -> bool:
    return rounds % DESCEND_EVERY == 0 or (rounds < DESCEND_EVERY and rounds & (rounds - 1) == 0)


def _pop(stack: list[_Domains]) -> _Domains:
    """Up to ``BATCH`` sub-boxes from the top, which keeps the stack short."""
    parts = [stack.pop()]
    while stack and sum(map(len, parts)) + len(stack[-1]) <= BATCH:
        parts.append(stack.pop())
    joined = _join(parts) if len(parts) > 1 else parts[0]
    if len(joined) > BATCH:
        order = torch.arange(len(joined))
        stack.append(joined.rows(order[BATCH:]))
        joined = joined.rows(order[:BATCH])
    return joined


def _join(parts: list[_Domains]) -> _Domains:
    boxes = [
        Box(torch.cat([b.lower for b in group]), torch.cat([b.upper for b in group]))
        for group in zip(*(p.boxes for p in parts), strict=True)
    ]
    lower, upper, opened = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("lower", "upper", "open")
    )
    return _Domains(lower, upper, opened, boxes, min(p.worst for p in parts))


def _bound(search: Search, clauses: Tensor, domains: _Domains) -> _Bounded:
    graph, n = search.graph, len(domains)
    shape = (n, *graph.input_shape)
    region = BoxRegion(domains.lower.reshape(shape), domains.upper.reshape(shape))
    state = propagate(graph, region, known=domains.boxes or None)
    C, d = search.rows.C[clauses], search.rows.d[clauses]
    rows = C.flatten(0, 1).reshape(1, -1, *graph.output_shape).expand(n, -1, *graph.output_shape)
    bound = pull_back(graph, len(graph.nodes) - 1, rows, state)
    A = bound.A
    if search.rows.D is not None:
        A = A + search.rows.D[clauses].reshape(1, *A.shape[1:])
    constant = bound.constant.reshape(n, *d.shape) + d
    value, best = (region.minimum(A).reshape(n, *d.shape) + constant).max(2)
    chosen = best[:, :, None, None].expand(-1, -1, 1, A[0, 0].numel())
    A = A.reshape(n, *d.shape, -1)
    search.domains += n
    domains = _Domains(domains.lower, domains.upper, domains.open, state.boxes)
    return _Bounded(domains, value, best, A.gather(2, chosen).squeeze(2), (A, constant))


def _collect(search: Search, clauses: Tensor, bounded: _Bounded) -> None:
    """Keeps a leaf for every clause that became proven on a sub-box."""
    proven = bounded.domains.open & (bounded.value > 0)
    if not search.keep_leaves:
        return
    for i, j in proven.nonzero().tolist():
        clause = int(clauses[j])
        weights = np.zeros(len(search.prop.clauses[clause].d))
        weights[min(int(bounded.best[i, j]), len(weights) - 1)] = 1.0
        search.leaves.append(
            Leaf(
                clause,
                bounded.domains.lower[i].numpy(),
                bounded.domains.upper[i].numpy(),
                weights,
                float(bounded.value[i, j]),
            )
        )


def _worst(bounded: _Bounded, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The open clause with the least bound of each kept sub-box, and its coefficients."""
    value = bounded.value[keep].masked_fill(~bounded.domains.open[keep], torch.inf)
    clause = value.argmin(1)
    return clause, bounded.A[keep, clause]


def _look(
    search: Search, clauses: Tensor, bounded: _Bounded, keep: Tensor, deep: bool
) -> Counterexample | None:
    """Tries the centre and the corner of least bound; now and then descends from the worst ones."""
    local, A = _worst(bounded, keep)
    clause = clauses[local]
    lower, upper = bounded.domains.lower[keep], bounded.domains.upper[keep]
    corner = torch.where(A > 0, lower, upper)
    points = torch.cat([corner, (lower + upper) / 2])
    found = search.check(clause.repeat(2), points)
    if found is None and deep and search.look:
        worst = bounded.value[keep].amin(1).argsort()[:64]
        lo, hi, at = lower[worst].float(), upper[worst].float(), clause[worst]
        x, _ = descend(search.single, search.rows32, at, (lo + hi) / 2, lo, hi, 10)
        found = search.check(at, x)
    return found


def _clip(bounded: _Bounded, keep: Tensor) -> _Bounded:
    """The kept sub-boxes within the least box around what their open clauses leave of them."""
    domains = bounded.domains.rows(keep)
    opened = domains.open & (bounded.value[keep] <= 0)
    A, b = bounded.rows[0][keep], bounded.rows[1][keep]
    n, c = b.shape[:2]
    lower, upper = (t.repeat_interleave(c, 0) for t in (domains.lower, domains.upper))
    part = clipped(Box(lower, upper), A.flatten(0, 1), b.flatten(0, 1))
    opened &= (part.lower <= part.upper).all(1).reshape(n, c)
    outside = ~opened.unsqueeze(2)
    lower = part.lower.reshape(n, c, -1).masked_fill(outside, torch.inf).amin(1)
    upper = part.upper.reshape(n, c, -1).masked_fill(outside, -torch.inf).amax(1)
    domains = _Domains(lower, upper, opened, domains.boxes, domains.worst)
    rows = bounded.rows
    return _Bounded(domains, bounded.value[keep], bounded.best[keep], bounded.A[keep], rows)


def _split(bounded: _Bounded, keep: Tensor) -> _Domains:
    """Halves every kept sub-box in the input with the highest score; in more while they are few."""
    domains = bounded.domains.rows(keep)
    opened = domains.open & (bounded.value[keep] <= 0)
    A = bounded.A[keep].abs()
    A = torch.maximum(A, LEAST_COEFFICIENT * A.amax(2, keepdim=True))
    score = (A * opened.unsqueeze(2)).amax(1) * (domains.upper - domains.lower)
    worst = bounded.value[keep].masked_fill(~opened, torch.inf).amin(1)
    order = worst.argsort()
    least = float(worst.min())
    domains = _Domains(domains.lower, domains.upper, opened, domains.boxes, least).rows(order)
    score = score[order]
    for _ in range(3 if len(keep) < 8 else 1):
        domains, score = _halve(domains, score)
    return domains


def _halve(domains: _Domains, score: Tensor) -> tuple[_Domains, Tensor]:
    axis = score.argmax(1, keepdim=True)
    middle = (domains.lower.gather(1, axis) + domains.upper.gather(1, axis)) / 2
    n = len(domains)
    both = domains.rows(torch.arange(n).repeat_interleave(2))
    twice = torch.arange(2 * n) % 2
    first, second = (twice == 0).nonzero().squeeze(1), (twice == 1).nonzero().squeeze(1)
    both.upper[first] = both.upper[first].scatter(1, axis, middle)
    both.lower[second] = both.lower[second].scatter(1, axis, middle)
    score = score.scatter(1, axis, score.gather(1, axis) / 2).repeat_interleave(2, 0)
    return both, score
