"""Domains of rectifier networks bounded in their dense form."""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from holdfast.verifiers.crown import State
from holdfast.verifiers.dense import Dense, DenseLines, ascend, backward, condense
from holdfast.verifiers.domains import CANDIDATES, Anchor, Domain, Root
from holdfast.verifiers.problem import Split
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import Search

# Coefficients of a batch of domains; a megabyte fits the caches of small machines.
BATCH_ELEMENTS = 1 << 18


class Point(NamedTuple):
    """Slopes, multipliers and signs of splits of one domain, ``(u,)`` each."""

    alpha: Tensor
    beta: Tensor
    sign: Tensor


class Stack(NamedTuple):
    """Domains as tensors: relaxations, slopes and multipliers ``(n, u)``, rows ``(n,)``."""

    lines: DenseLines
    alpha: Tensor
    beta: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor


def dense_bounds(search: Search, root: Root, clauses: Sequence[int]) -> DenseBounds | None:
    """The bounder of a rectifier network, or None for other networks and for balls."""
    if not isinstance(root.region, BoxRegion):
        return None
    at = torch.tensor(list(clauses))
    weights = torch.stack([root.weights[c] for c in clauses]).unsqueeze(1)
    rows = search.rows
    net = condense(
        search.single,
        State([type(b)(b.lower.float(), b.upper.float()) for b in root.anchor.state.boxes], []),
        (weights @ rows.C[at])[:, 0].float(),
        None if rows.D is None else (weights @ rows.D[at])[:, 0].float(),
        (weights[:, 0] * rows.d[at]).sum(1).float(),
        (root.region.lower.flatten().float(), root.region.upper.flatten().float()),
    )
    return None if net is None else DenseBounds(search, net, clauses)


@final
class DenseBounds:
    """Bounds of the domains of one input box."""

    def __init__(self, search: Search, net: Dense, clauses: Sequence[int]) -> None:
        self.search, self.net = search, net
        self.row = {clause: i for i, clause in enumerate(clauses)}
        self.places = [(k.source, int(j)) for k in net.layers for j in k.neurons]
        self.index = {place: i for i, place in enumerate(self.places)}
        self.bounds: WeakKeyDictionary[Anchor, tuple[Tensor, Tensor]] = WeakKeyDictionary()
        self.size = max(16, min(512, BATCH_ELEMENTS // net.rows.shape[1]))

    def cost(self, steps: int) -> float:
        """Of the dense form, forward and backward, and of trials."""
        return (2 * steps + 2 * CANDIDATES) * self.net.cost

    @torch.no_grad()
    def solve(self, domains: Sequence[Domain], steps: int) -> None:
        """Adam with the dual's supergradient."""
        stack = self._stack(domains)
        sign = stack.lines.sign
        alpha, beta, value = ascend(
            self.net, stack.rows, stack.lines, stack.alpha, stack.beta, steps
        )
        for i, domain in enumerate(domains):
            domain.choices = Point(alpha[i].clone(), beta[i].clone(), sign[i].clone())
            domain.value = float(value[i])

    @torch.no_grad()
    def trial(self, domains: Sequence[Domain], options: list[list[Split]]) -> Tensor:
        """One pass for each half."""
        owner = [i for i, splits in enumerate(options) for _ in splits]
        place = [self.index[s.node, s.neuron] for splits in options for s in splits]
        stack, found = self._stack(domains), []
        for i in range(0, len(owner), self.size):
            at = torch.tensor(owner[i : i + self.size]).repeat_interleave(2)
            sign = stack.lines.sign[at]
            which = torch.tensor(place[i : i + self.size]).repeat_interleave(2)
            side = 1.0 - 2.0 * (torch.arange(len(at)) % 2)
            sign[torch.arange(len(at)), which] = side
            lines = DenseLines.of(stack.lower[at], stack.upper[at], sign)
            value, _ = backward(self.net, stack.rows[at], lines, stack.alpha[at], stack.beta[at])
            found.append(value)
        return torch.cat(found).reshape(-1, 2)

    @torch.no_grad()
    def candidates(self, domains: Sequence[Domain]) -> list[list[Split]]:
        """Neurons whose lines lose most: some of all layers, the best of each, and one more.

        Optimised slopes may turn all that lies before a layer off. The last candidate is the one
        that loses most with default slopes, which see through to the inputs.
        """
        stack = self._stack(domains)
        score = self._losses(stack, stack.alpha, stack.beta)
        best = [score[:, i:j].argmax(1) + i for i, j in self.net.spans() if j > i]
        most = score.topk(min(CANDIDATES, score.shape[1]), 1).indices
        default = self._losses(stack, (stack.upper > -stack.lower).float(), 0 * stack.beta)
        last = default.argmax(1, keepdim=True)
        top = torch.cat([most, torch.stack(best, 1), last], 1)
        values = score.gather(1, top)
        return [
            [Split(self.places[j][0], self.places[j][1], 0.0, True) for j in row]
            for row in (
                list(dict.fromkeys(j for j, v in zip(indices, scores, strict=True) if v >= 0))
                for indices, scores in (
                    (i[::-1], v[::-1]) for i, v in zip(top.tolist(), values.tolist(), strict=True)
                )
            )
        ]

    def _losses(self, stack: Stack, alpha: Tensor, beta: Tensor) -> Tensor:
        """Loss at the kink or at the ends of the range, ``(n, u)``; -1 where nothing is lost."""
        lines = stack.lines
        _, A = backward(self.net, stack.rows, lines, alpha, beta)
        a = A[:, self.net.n_inputs :]
        ends = torch.minimum((1 - alpha) * stack.upper, -alpha * stack.lower)
        score = (-a).relu() * lines.intercept + 0.5 * a.relu() * ends.relu()
        return torch.where(lines.loose > 0, score, -1.0)

    def half(self, domain: Domain, split: Split) -> Domain:
        """The parent's choices and the split's sign."""
        point = self._point(domain)
        sign = point.sign.clone()
        sign[self.index[split.node, split.neuron]] = 1.0 if split.above else -1.0
        choices = point._replace(sign=sign)
        return Domain(domain.clause, (*domain.splits, split), domain.anchor, choices)

    @torch.no_grad()
    def corners(self, domains: Sequence[Domain]) -> Tensor:
        """Against the signs of the coefficients."""
        stack = self._stack(domains)
        _, A = backward(self.net, stack.rows, stack.lines, stack.alpha, stack.beta)
        return self.net.middle - A[:, : self.net.n_inputs].sign() * self.net.radius

    def parameters(self, domains: Sequence[Domain]) -> dict[int, Tensor]:
        """Slopes at their neurons; the others need none."""
        alpha = torch.stack([self._point(d).alpha for d in domains]).double()
        found = {}
        for layer, (i, j) in zip(self.net.layers, self.net.spans(), strict=True):
            node = self.search.graph.nodes[layer.node]
            full = torch.zeros(len(domains), node.size, dtype=alpha.dtype)
            full[:, layer.neurons] = alpha[:, i:j]
            found[layer.node] = full.reshape(1, len(domains), 1, *node.shape)
        return found

    def multipliers(self, domain: Domain) -> list[float]:
        """Those of the split neurons."""
        beta = self._point(domain).beta
        places = [self.index[s.node, s.neuron] for s in domain.splits]
        return beta[places].tolist() if places else []

    def _point(self, domain: Domain) -> Point:
        if domain.choices is not None:
            return domain.choices
        lower, upper = self._bounds(domain.anchor)
        zero = torch.zeros_like(lower)
        return Point((upper > -lower).to(lower.dtype), zero, zero)

    def _bounds(self, anchor: Anchor) -> tuple[Tensor, Tensor]:
        """Bounds of the undecided neurons ``(u,)``."""
        if anchor not in self.bounds:
            boxes = anchor.state.boxes
            lower, upper = (
                torch.cat(
                    [boxes[k.source][side].flatten()[k.neurons] for k in self.net.layers]
                ).float()
                for side in (0, 1)
            )
            self.bounds[anchor] = lower, upper
        return self.bounds[anchor]

    def _stack(self, domains: Sequence[Domain]) -> Stack:
        points = [self._point(d) for d in domains]
        bounds = [self._bounds(d.anchor) for d in domains]
        alpha, beta, sign = (torch.stack(list(t)) for t in zip(*points, strict=True))
        lower, upper = (torch.stack(list(t)) for t in zip(*bounds, strict=True))
        rows = torch.tensor([self.row[d.clause] for d in domains])
        return Stack(DenseLines.of(lower, upper, sign), alpha, beta, rows, lower, upper)
