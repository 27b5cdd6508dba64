"""The largest radius at which a sample's class is proven not to change, by bisection.

A ball contains every smaller one around the same input, so a proof at one radius holds below it,
and boxes found at a radius that was too large still hold at every smaller one: each trial starts
from the boxes of the last failure. All samples are bisected at once, each at its own radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.bounds import SAMPLES, BoundMethod, lower_over, margins
from holdfast.verifiers.crown import State
from holdfast.verifiers.regions import Norm, Region, threat_region

Domain = tuple[Tensor | float, Tensor | float]


@final
@dataclass(frozen=True, slots=True)
class Search:
    """How the radius is sought.

    Attributes:
        method: Bounds that prove.
        tolerance: Relative width of the interval in which the search ends.
        smallest: Share of the largest sensible radius below which it gives up.
        steps: Gradient steps of ``alpha-crown``.
    """

    method: BoundMethod = "crown"
    tolerance: float = 0.01
    smallest: float = 1e-5
    steps: int = 20


@torch.no_grad()
def bisected_radius(
    graph: Graph,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    domain: Domain,
    search: Search,
    start: Tensor | None = None,
) -> Tensor:
    """Certified radii ``(n,)`` in float64; 0 where the class is wrong or nothing is proven.

    Args:
        graph: The network, in float64.
        x: Inputs ``(n, *shape)`` in float64.
        y: Classes ``(n,)``.
        norm: The norm; for l0 the radius is a whole number of elements.
        domain: Least and greatest inputs.
        search: Options.
        start: Radii ``(n,)`` to try first; by default half of what the margin's gradient at the
            input would allow.
    """
    found = []
    for i in range(0, len(x), SAMPLES):
        part = slice(i, i + SAMPLES)
        first = None if start is None else start[part].to(x)
        found.append(_Bracket(graph, x[part], y[part], norm, domain, search, first).close())
    return torch.cat(found) if found else x.new_zeros(0)


class _Bracket:
    """Proven radii below, failed ones above, and the boxes of the failures."""

    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        y: Tensor,
        norm: Norm,
        domain: Domain,
        search: Search,
        start: Tensor | None,
    ) -> None:
        self.graph, self.x, self.domain, self.search = graph, x, domain, search
        self.norm: Norm = norm
        self.C = margins(y, graph.nodes[-1].size).to(x)
        self.cap = largest_radius(x, norm, domain)
        self.low = torch.zeros_like(self.cap)
        self.high = torch.full_like(self.cap, torch.inf)
        self.boxes = [
            Box(
                x.new_full((len(x), *n.shape), -torch.inf),
                x.new_full((len(x), *n.shape), torch.inf),
            )
            for n in graph.nodes
        ]
        guess = self._linear_guess() if start is None else start
        self.trial = torch.minimum(guess.clamp(min=self.cap * search.smallest), self.cap)
        if norm == "l0":
            self.trial = self.trial.ceil().clamp(min=1)

    @torch.enable_grad()
    def _linear_guess(self) -> Tensor:
        """Half the distance at which a linear network with these gradients would change."""
        x = self.x.detach().requires_grad_(True)
        least = torch.einsum("nkm,nm->nk", self.C, flattened(self.graph(x))).amin(1)
        (slope,) = torch.autograd.grad(least.sum(), x)
        order = {"linf": 1.0, "l2": 2.0}.get(self.norm, math.inf)
        steepest = torch.linalg.vector_norm(flattened(slope), order, 1)
        tiny = torch.finfo(x.dtype).tiny
        return (least.detach().clamp(min=0) / steepest.clamp(min=tiny) / 2).nan_to_num(0.0)

    def close(self) -> Tensor:
        """Bisect until every sample's bracket is narrow; the proven ends."""
        # A radius of zero must hold, else the sample is wrong already.
        values = torch.einsum("nkm,nm->nk", self.C, flattened(self.graph(self.x)))
        active = (values.amin(1) > 0).nonzero().squeeze(1)
        while len(active):
            self._try(active)
            self.trial = self._next()
            active = active[~self._is_done()[active]]
        return self.low

    def _try(self, rows: Tensor) -> None:
        radius = self.trial[rows]
        region: Region = threat_region(self.x[rows], radius, self.norm, *self.domain)
        known = [Box(b.lower[rows], b.upper[rows]) for b in self.boxes]
        lower, state = lower_over(
            self.graph, region, self.C[rows], self.search.method, self.search.steps, known
        )
        proven = lower.amin(1) > 0
        self.low[rows] = torch.where(proven, radius, self.low[rows])
        self.high[rows] = torch.where(proven, self.high[rows], radius)
        self._keep(rows[~proven], (~proven).nonzero().squeeze(1), state)

    def _keep(self, rows: Tensor, places: Tensor, state: State) -> None:
        for mine, box in zip(self.boxes, state.boxes, strict=True):
            mine.lower[rows], mine.upper[rows] = box.lower[places], box.upper[places]

    def _next(self) -> Tensor:
        """Up by four while all is proven, down by four while nothing is, then the middle."""
        up, down = (self.low * 4).clamp(max=self.cap), self.high / 4
        middle = (self.low * self.high).sqrt()
        trial = torch.where(self.high.isinf(), up, torch.where(self.low == 0, down, middle))
        if self.norm == "l0":
            trial = torch.where(self.high.isinf(), up, ((self.low + self.high) / 2).floor())
        return trial

    def _is_done(self) -> Tensor:
        if self.norm == "l0":
            return (self.high - self.low <= 1) | (self.low >= self.cap)
        narrow = self.high <= self.low * (1 + self.search.tolerance)
        hopeless = (self.low == 0) & (self.trial < self.cap * self.search.smallest)
        return narrow | hopeless | (self.low >= self.cap)


def largest_radius(x: Tensor, norm: Norm, domain: Domain) -> Tensor:
    """Radius ``(n,)`` from which on the ball holds the whole domain."""
    low, high = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in domain)
    width = flattened(torch.maximum(x - low, high - x))
    if norm == "l0":
        return torch.full_like(width[:, 0], float(width.shape[1]))
    order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm]
    return torch.linalg.vector_norm(width, order, 1)
