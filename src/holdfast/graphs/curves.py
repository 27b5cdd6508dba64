"""Lines below and above smooth functions of one variable, for any function with known inflections.

A function is described by its value, its derivative and the points where its curvature changes
sign.
For any slope ``k``, ``f(z) - k z`` attains its least value over ``[l, u]`` at an end or, within a
convex piece, where ``f'(z) = k``, which bisection finds since ``f'`` increases there. A
tangent at the point found lies below the piece whatever the bisection's error, so lines are sound
for every slope; only the choice of the slope is heuristic. The area under the lower line is
largest for the line that supports the convex envelope at the centre of the interval. Within one
convex piece that is the tangent there, and the best upper line is the chord; only for intervals
across an inflection the slope is found from samples.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.graphs.operator import Activation, Box, Lines

SAMPLES = 17
BISECTIONS = 30


class Curve(Activation):
    """A smooth function; subclasses give ``run``, ``derivative`` and where curvature changes.

    Its two parameters move the slopes of the lower and the upper line from the default (0.5)
    towards the derivatives at the lower (0) and the upper end (1).
    """

    n_parameters: ClassVar[int] = 2
    inflections: ClassVar[tuple[float, ...]] = ()
    """Where the curvature changes its sign, ascending."""
    is_convex_first: ClassVar[bool] = True
    """Whether the leftmost piece is convex."""
    extrema: ClassVar[tuple[float, ...]] = ()
    """Where the derivative changes its sign."""

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """The first derivative, elementwise."""

    def interval(self, *boxes: Box) -> Box:
        """Values at the ends and at extrema between them."""
        lower, upper = boxes[0]
        inside = [
            torch.minimum(torch.maximum(lower, lower.new_tensor(p)), upper) for p in self.extrema
        ]
        stacked = torch.stack([self.run(z) for z in (lower, upper, *inside)])
        return Box(stacked.amin(0), stacked.amax(0))

    def is_loose(self, box: Box) -> Tensor:
        """Where the interval has any width worth bounding again."""
        return box.upper - box.lower > 1e-6

    def start(self, box: Box) -> Tensor:
        """The default slopes."""
        return torch.full_like(box.lower, 0.5).expand(2, *box.lower.shape).contiguous()

    def magnitude(self, *boxes: Box) -> Tensor:
        """Values, slopes (of chords or tangents) times inputs, and intercepts."""
        box = boxes[0]
        points = [box.lower, box.upper]
        points += [box.lower.clamp(min=p).minimum(box.upper) for p in self.inflections]
        steepest = torch.stack([self.derivative(z).abs() for z in points]).amax(0)
        z = box.magnitude()
        return 3 * self.interval(box).magnitude() + (1 + 4 * steepest) * z

    def relax(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """Supporting lines of the convex and the concave envelope."""
        lines, bent = self._simple(lower, upper, parameters)
        places = bent.flatten().nonzero().squeeze(1)
        if not len(places):
            return lines
        shape = (*lower.shape[:1], *lower.shape[2:])
        low, high = (_columns(t)[:, places] for t in (lower, upper))
        share = None
        if parameters is not None:
            share = torch.stack([_columns(t.expand(-1, -1, *shape[1:])) for t in parameters])
            share = share[:, :, places]
        found = self._bent(low, high, share)
        return Lines(*(_put(t, places, f, shape) for t, f in zip(lines, found, strict=True)))  # type: ignore[arg-type]

    def _simple(
        self, lower: Tensor, upper: Tensor, parameters: Tensor | None
    ) -> tuple[Lines, Tensor]:
        """Tangents and chords, right within one piece of the curve, and where that fails."""
        chord = (self.run(upper) - self.run(lower)) / (upper - lower)
        chord = torch.where(upper - lower < 1e-9, self.derivative(lower), chord)
        convex, bent = self._pieces(lower, upper)
        share = [None, None] if parameters is None else list(parameters)
        ends = lower, upper
        points = [_blend((lower + upper) / 2, *ends, s) for s in share]
        tangents = [self.derivative(z) for z in points]
        touching = [self.run(z) - k * z for z, k in zip(points, tangents, strict=True)]
        at_ends = [self.run(z) - chord * z for z in ends]
        low = torch.where(convex, touching[0], torch.minimum(*at_ends))
        high = torch.where(convex, torch.maximum(*at_ends), touching[1])
        low_slope = torch.where(convex, tangents[0], chord)
        high_slope = torch.where(convex, chord, tangents[1])
        reach = torch.maximum(lower.abs(), upper.abs())
        slack = 8 * torch.finfo(lower.dtype).eps
        low = low - slack * (low.abs() + low_slope.abs() * reach)
        high = high + slack * (high.abs() + high_slope.abs() * reach)
        return Lines(low_slope, low, high_slope, high), bent

    def _pieces(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Where the interval lies within a convex piece, and where across an inflection."""
        after = torch.zeros_like(lower)
        bent = torch.zeros_like(lower, dtype=torch.bool)
        for point in self.inflections:
            after = after + (lower >= point)
            bent = bent | ((lower < point) & (upper > point))
        return (after % 2 == 0) == self.is_convex_first, bent

    def _bent(self, lower: Tensor, upper: Tensor, parameters: Tensor | None) -> Lines:
        """The same for any interval, by samples and bisection."""
        with torch.no_grad():
            low_slope, high_slope = self._slopes(lower.detach(), upper.detach())
        if parameters is not None:
            ends = self.derivative(lower), self.derivative(upper)
            low_slope = _blend(low_slope, *ends, parameters[0])
            high_slope = _blend(high_slope, *ends, parameters[1])
        low = self._least(lower, upper, low_slope, 1.0)
        high = -self._least(lower, upper, -high_slope, -1.0)
        return Lines(low_slope, low, high_slope, high)

    def _slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of both envelopes at the centre, from chords between samples on either side."""
        share = torch.linspace(0, 1, SAMPLES, dtype=lower.dtype, device=lower.device)
        z = lower + (upper - lower) * share.reshape(-1, *[1] * lower.dim())
        f, half = self.run(z), SAMPLES // 2
        left, right = slice(0, half + 1), slice(half, SAMPLES)
        width = (z[right].unsqueeze(0) - z[left].unsqueeze(1)).clamp(min=torch.finfo(z.dtype).tiny)
        slope = (f[right].unsqueeze(0) - f[left].unsqueeze(1)) / width
        height = f[left].unsqueeze(1) + slope * (z[half] - z[left].unsqueeze(1))
        slope, height = slope.flatten(0, 1), height.flatten(0, 1)
        # The pair (centre, centre) is no chord; as it is always best, leave it out.
        mask = torch.ones(half + 1, SAMPLES - half, dtype=torch.bool, device=z.device)
        mask[-1, 0] = False
        keep = mask.flatten().nonzero().squeeze(1)
        slope, height = slope[keep], height[keep]
        flat = upper - lower < 1e-9
        chosen = [
            torch.where(
                flat,
                self.derivative(lower),
                slope.gather(0, (sign * height).argmin(0, keepdim=True))[0],
            )
            for sign in (1, -1)
        ]
        return chosen[0], chosen[1]

    def _least(self, lower: Tensor, upper: Tensor, slope: Tensor, sign: float) -> Tensor:
        """A lower bound of ``sign f(z) - slope z`` over ``[lower, upper]``."""
        best = torch.minimum(
            sign * self.run(lower) - slope * lower, sign * self.run(upper) - slope * upper
        )
        edges = [-torch.inf, *self.inflections, torch.inf]
        convex = self.is_convex_first if sign > 0 else not self.is_convex_first
        for i in range(len(edges) - 1):
            if convex == (i % 2 == 0):
                piece = self._least_on_piece(lower, upper, slope, sign, edges[i], edges[i + 1])
                best = torch.minimum(best, piece)
        return best - 8 * torch.finfo(best.dtype).eps * (
            best.abs() + slope.abs() * torch.maximum(lower.abs(), upper.abs())
        )

    def _least_on_piece(
        self, lower: Tensor, upper: Tensor, slope: Tensor, sign: float, begin: float, end: float
    ) -> Tensor:
        """The same over the part of the interval within a convex piece, else infinity."""
        a, b = lower.clamp(min=begin), upper.clamp(max=end)
        empty = a >= b
        a = torch.minimum(a, b)
        low, high = a.detach(), b.detach()
        with torch.no_grad():
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                rising = sign * self.derivative(middle) < slope
                low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
            point = (low + high) / 2
        # f >= tangent at the point; the tangent minus the line is linear, least at an end of the
        # piece.
        value, tilt = sign * self.run(point) - slope * point, sign * self.derivative(point) - slope
        least = value + torch.minimum(tilt * (a - point), tilt * (b - point))
        return torch.where(empty, torch.inf, least)


def _blend(default: Tensor, at_lower: Tensor, at_upper: Tensor, share: Tensor | None) -> Tensor:
    """``default`` at 0.5, ``at_lower`` at 0, ``at_upper`` at 1, linear between."""
    if share is None:
        return default
    down, up = (1 - 2 * share).clamp(min=0), (2 * share - 1).clamp(min=0)
    return default * (1 - down - up) + at_lower * down + at_upper * up


def _columns(t: Tensor) -> Tensor:
    """``(n, k, *shape) -> (k, n * size)``."""
    return t.transpose(0, 1).flatten(1)


def _put(t: Tensor, places: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``t (n, k or 1, *shape)`` with ``values (k, m)`` at flat places of every row."""
    k = max(t.shape[1], len(values))
    columns = _columns(t.expand(-1, k, *shape[1:])).index_copy(1, places, values.expand(k, -1))
    return columns.reshape(k, *shape).transpose(0, 1)
