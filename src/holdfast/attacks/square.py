"""Square Attack: a query-efficient black-box attack via random search.

Andriushchenko, Croce, Flammarion and Hein (2020, arXiv:1912.00049). Maximises the margin over the
ball by random search with localised changes whose size shrinks: each step repaints one random
window and keeps it where the margin did not fall. No gradient is used, so nothing hides from it.

Differences from the paper and its reference code: every row draws its own window (the code shares
one in a batch) from all positions (the code never draws the last), windows fit inputs that are not
square, an equal margin is accepted (a walk over the plateaus of saturated or rounded scores),
and a target's margin is taken against all other classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Attack, Card, Problem, Query
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.perturbations.l2 import L2Ball
from holdfast.rows import like, static_field
from holdfast.threat import Access, AllowedSet

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps after which the window's area is halved, for 10,000 queries (section 4.1)."""

TINY = 1e-12  # keeps ratios of lengths finite, as in the reference code

SERIES_RATIO = 4
"""A two-dimensional input at least this many times longer than high is (channels, time)."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What all rows share: how inputs of one shape are cut into windows.

    Attributes:
        channels: Number of channels c; a window covers all of them.
        spatial: Lengths of the k other axes; inputs are handled as ``(n, c, *spatial)``.
        sign_shape: Shape of one window's signs: ``(c, 1, ...)``, or one per feature of a vector.
        halvings: Steps after which the window's area is halved.
        sides: Window sides ``(levels, k)`` after that many halvings.
        lengths: ``spatial`` as a tensor.
        place: The coordinates along all spatial axes, one after the other.
        axis_of: Their axes.
        eta: For l2, the patterns of equation 2, one per level and axis that it is cut along, each
            on a grid with a border of zeros, flattened; empty for linf.
        strides: Steps in ``eta`` from level to level, cut to cut, and cell to cell per axis.
    """

    channels: int
    spatial: tuple[int, ...]
    sign_shape: tuple[int, ...]
    halvings: Tensor
    sides: Tensor
    lengths: Tensor
    place: Tensor
    axis_of: Tensor
    eta: Tensor
    strides: Tensor


@dataclass(frozen=True, slots=True)
class SquareState:
    """One row per job: the best point so far, and the point proposed next."""

    allowed: AllowedSet
    y: Tensor
    target: Tensor
    rng: Rng
    step: Tensor
    best: Tensor
    best_margin: Tensor
    points: Tensor
    finished: Tensor
    windows: Windows = static_field()


@final
@dataclass(frozen=True, slots=True)
class Square(Attack):
    """Random search with square windows, forward passes only.

    Attributes:
        queries: Points per job, the starting point among them.
        p_init: Fraction of the input that the first windows cover.
        restarts: Jobs per sample.
        rescale_schedule: Stretch the shrinking of windows, made for 10,000 queries, to ``queries``.
    """

    card: ClassVar[Card] = Card(
        name="square",
        title="random search with shrinking square windows, without gradients",
        paper="Andriushchenko, Croce, Flammarion and Hein (2020), Square Attack, arXiv:1912.00049",
        access=Access.SCORES,
        norms=frozenset({"linf", "l2"}),
    )

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot run."""
        if self.queries < 1 or self.restarts < 1 or not 0 < self.p_init <= 1:
            raise PlanError(
                f"Square cannot run with queries={self.queries}, restarts={self.restarts}, "
                f"p_init={self.p_init}. Give at least one query and restart, and 0 < p_init <= 1."
            )

    @property
    def max_queries(self) -> int:
        """One point per step."""
        return self.queries

    def init(self, problem: Problem) -> SquareState:
        """Start from stripes (linf) or tiles (l2) of random sign and full size."""
        x, is_l2 = problem.x, isinstance(problem.allowed, L2Ball)
        stretch = self.queries / 10_000 if self.rescale_schedule else 1.0
        windows = _windows(tuple(x.shape[1:]), self.p_init, stretch, is_l2, x.device, x.dtype)
        start = _tiles if is_l2 else _stripes
        points = start(problem.allowed, windows, problem.rng.fold(0))
        return SquareState(
            allowed=problem.allowed,
            y=problem.y,
            target=problem.target,
            rng=problem.rng.fold(1),
            step=torch.zeros_like(problem.y),
            best=points.clone(),
            best_margin=torch.full_like(points.flatten(1)[:, 0], -torch.inf),
            points=points,
            finished=torch.zeros_like(problem.y, dtype=torch.bool),
            windows=windows,
        )

    def ask(self, state: SquareState) -> Query:
        """The proposed point; its logits are enough."""
        return Query(state.points)

    def tell(self, state: SquareState, answer: Answer) -> SquareState:
        """Keep the point where the margin did not fall, and propose the next one."""
        gain = goal_margin(answer.logits, state.y, state.target).to(state.best.dtype)
        is_better = gain >= state.best_margin
        # exact for weights 0 and 1, and far faster than torch.where
        best = torch.lerp(state.best, state.points, like(is_better.to(gain.dtype), state.best))
        return replace(
            _proposed(state, best),
            step=state.step + 1,
            best_margin=torch.where(is_better, gain, state.best_margin),
            finished=state.step + 1 >= self.queries,
        )

    def begin(self, state: SquareState, points: Tensor, margins: Tensor) -> SquareState:
        """The whole schedule again, from ``points`` whose margins ``(n,)`` are known."""
        state = replace(state, step=torch.zeros_like(state.step), best_margin=margins)
        return replace(_proposed(state, points), finished=torch.zeros_like(state.finished))


def _proposed(state: SquareState, best: Tensor) -> SquareState:
    """The best point so far, and one beside it to look at next."""
    propose = _move_mass if isinstance(state.allowed, L2Ball) else _repaint
    points, n = propose(state.allowed, best, state.windows, state.rng, state.step)
    return replace(state, rng=state.rng.skip(n), best=best, points=points)


def _stripes(allowed: AllowedSet, windows: Windows, rng: Rng) -> Tensor:
    """Corners of the ball with one sign per channel and column (section 4.3)."""
    lower, upper = allowed.hull()
    ones = (1,) * (len(windows.spatial) - 1)
    sign = rng.sign((windows.channels, *ones, windows.spatial[-1]))
    cells = (len(sign), windows.channels, *windows.spatial)
    up = (sign > 0).expand(cells).reshape(lower.shape)
    return torch.where(up, upper, lower)


def _repaint(
    allowed: AllowedSet, best: Tensor, windows: Windows, rng: Rng, step: Tensor
) -> tuple[Tensor, int]:
    """One window of ``best`` moves to a corner of the ball, one sign per channel (algorithm 2)."""
    k = len(windows.spatial)
    shape = (k + math.prod(windows.sign_shape),)
    u = rng.uniform(shape)
    sides = windows.sides[torch.bucketize(step, windows.halvings)]
    *inside, last = _inside(windows, _corner(windows, u[:, :k], sides), sides, best.dtype)
    # twice the diameter: the clamp below ends exactly at the bounds, whatever the rounding
    push = reduce(torch.mul, inside, _signs(windows, u[:, k:], 4 * allowed.radius))
    moved = torch.addcmul(_split(best, windows), push, last).reshape(best.shape)
    return torch.clamp(moved, *allowed.hull()), shape[0]


def _tiles(allowed: AllowedSet, windows: Windows, rng: Rng) -> Tensor:
    """A grid of about five patterns along each axis, of random sign (section 4.4)."""
    x = _split(allowed.x, windows)
    pattern, tile_of = _tile_pattern(windows.spatial)
    cut = rng.fold(0).integers(len(windows.spatial))
    delta = torch.as_tensor(pattern, dtype=x.dtype, device=x.device)[cut].unsqueeze(1)
    if windows.sign_shape == (1, *windows.spatial):
        sign = rng.fold(1).sign(windows.sign_shape, x.dtype)
    else:
        counts = tuple(int(index.max()) + 1 for index in tile_of)
        sign = rng.fold(1).sign((windows.channels, *counts), x.dtype)
        for axis, index in enumerate(tile_of):
            sign = sign.index_select(2 + axis, torch.as_tensor(index, device=x.device))
    return _at_radius(allowed, delta * sign)


def _move_mass(
    allowed: AllowedSet, best: Tensor, windows: Windows, rng: Rng, step: Tensor
) -> tuple[Tensor, int]:
    """The change of one window moves into another one, as a new pattern (algorithm 3)."""
    k = len(windows.spatial)
    shape = (2 * k + 1 + math.prod(windows.sign_shape),)
    u = rng.uniform(shape)
    level = torch.bucketize(step, windows.halvings)
    sides = windows.sides[level]
    corner = _corner(windows, u[:, :k], sides)
    window = reduce(torch.mul, _inside(windows, corner, sides, best.dtype))
    other = _corner(windows, u[:, k:], sides)
    emptied = reduce(torch.mul, _inside(windows, other, sides, best.dtype))
    eta = _pattern(windows, corner, sides, level, (u[:, 2 * k] * k).to(torch.int32))
    sign = _signs(windows, u[:, 2 * k + 1 :], torch.ones_like(allowed.radius))

    delta = _split(best - allowed.x, windows)
    old = delta * window
    kept = delta - old
    kept = torch.addcmul(kept, kept, emptied, value=-1)
    new = torch.addcdiv(eta * sign, old, _norm(old, k) + TINY)
    square = _norm(delta, k).square()
    unused = (allowed.radius.square() - square.flatten(1).sum(1)).clamp_min(0.0)
    length = square - _norm(kept, k).square() + like(unused, square) / windows.channels
    scale = length.clamp_min(0.0).sqrt() / (_norm(new, k) + TINY)
    return _at_radius(allowed, torch.addcmul(kept, new, scale)), shape[0]


def _at_radius(allowed: AllowedSet, delta: Tensor) -> Tensor:
    """``x + delta``, scaled to the ball's surface, then cut with the box."""
    assert isinstance(allowed, L2Ball)
    scale = like(allowed.radius, delta) / (_norm(delta, delta.ndim - 1) + TINY)
    points = torch.addcmul(allowed.x.reshape(delta.shape), delta, scale).reshape(allowed.x.shape)
    return torch.minimum(torch.maximum(points, allowed.box_lower), allowed.box_upper)


def _norm(delta: Tensor, n_axes: int) -> Tensor:
    """Euclidean norm over the last axes, kept as size one.

    By a sum of squares: torch adds those pairwise, but one by one in ``norm``, whose error at a
    million coordinates would leave the ball.
    """
    axes = tuple(range(-n_axes, 0))
    return delta.square().sum(axes, keepdim=True).sqrt()


def _split(x: Tensor, windows: Windows) -> Tensor:
    """``(n, *shape)`` as ``(n, c, *spatial)``."""
    return x.reshape(-1, windows.channels, *windows.spatial)


def _signs(windows: Windows, u: Tensor, size: Tensor) -> Tensor:
    """``+size`` or ``-size`` ``(n,)`` by uniform numbers, of ``sign_shape``."""
    u = u.reshape(-1, *windows.sign_shape)
    return torch.copysign(like(size, u), u - 0.5)


def _corner(windows: Windows, u: Tensor, sides: Tensor) -> Tensor:
    """A random first cell of each window ``(n, k)``, uniform over those that fit."""
    k = sides.shape[1]
    return (u[:, :k] * (windows.lengths + 1 - sides)).floor()


def _inside(windows: Windows, corner: Tensor, sides: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Per spatial axis 1 inside the window, else 0, to broadcast with ``(n, c, *spatial)``."""
    half = sides / 2
    centre = (corner + half - 0.5)[:, windows.axis_of]
    inside = (windows.place - centre).abs() < half[:, windows.axis_of]
    return _by_axis(windows, inside.to(dtype))


def _by_axis(windows: Windows, values: Tensor) -> list[Tensor]:
    """``(n, sum of lengths)`` cut by axis, to broadcast with ``(n, c, *spatial)``."""
    k = len(windows.spatial)
    shapes = [(-1, *(1,) * (a + 1), windows.spatial[a], *(1,) * (k - a - 1)) for a in range(k)]
    parts = values.split(windows.spatial, dim=1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pattern(windows: Windows, corner: Tensor, sides: Tensor, level: Tensor, cut: Tensor) -> Tensor:
    """The pattern eta in each row's window ``(n, 1, *spatial)``, zero elsewhere."""
    # cell 0 and the cells from side + 1 on are the border of zeros
    cell = (windows.place + 1 - corner[:, windows.axis_of]).clamp_min(0.0)
    cell = torch.minimum(cell, (sides + 1)[:, windows.axis_of]).to(torch.int32)
    first, *others = _by_axis(windows, cell * windows.strides[2:][windows.axis_of])
    table = level.to(torch.int32) * windows.strides[0] + cut * windows.strides[1]
    index = sum(others, start=first + like(table, first))
    return windows.eta.index_select(0, index.flatten()).reshape(index.shape)


@lru_cache(maxsize=16)
def _windows(
    shape: tuple[int, ...],
    p_init: float,
    stretch: float,
    is_l2: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Windows:
    """The windows for inputs of ``shape``."""
    channels, spatial = layout(shape)
    sides = [window_sides(spatial, p_init / 2**i, is_l2) for i in range(len(HALVINGS) + 1)]
    bank = _bank(sides) if is_l2 else np.zeros(0)
    place = [(i, axis) for axis, length in enumerate(spatial) for i in range(length)]
    is_vector = len(shape) == 1
    return Windows(
        channels=channels,
        spatial=spatial,
        sign_shape=(1, *spatial) if is_vector else (channels, *(1,) * len(spatial)),
        halvings=torch.tensor([math.floor(h * stretch) for h in HALVINGS], device=device),
        sides=torch.tensor(sides, dtype=torch.float32, device=device),
        lengths=torch.tensor(spatial, dtype=torch.float32, device=device),
        place=torch.tensor([i for i, _ in place], dtype=torch.float32, device=device),
        axis_of=torch.tensor([axis for _, axis in place], device=device),
        eta=torch.as_tensor(bank.reshape(-1), dtype=dtype, device=device),
        strides=torch.tensor(bank.strides, dtype=torch.int32, device=device) // bank.itemsize,
    )


def layout(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Channels and spatial axes of an input of ``shape``.

    ``(d,)`` is one channel of d features, ``(c, t)`` a series where t >= 4 c, else an image
    ``(h, w)``; more axes are channels first.
    """
    if len(shape) == 1 or (len(shape) == 2 and shape[1] < SERIES_RATIO * shape[0]):
        return 1, shape
    return shape[0], shape[1:]


def window_sides(spatial: tuple[int, ...], p: float, is_l2: bool) -> tuple[int, ...]:
    """Sides of a window that covers the fraction ``p``: equal, but none longer than its axis.

    Patterns for l2 need odd sides of at least three.
    """
    side = round((p * math.prod(spatial)) ** (1 / len(spatial)))
    side = max(side, 3) | 1 if is_l2 else max(side, 1)
    return tuple(min(side, length) for length in spatial)


def _bank(levels: list[tuple[int, ...]]) -> np.ndarray:
    """Patterns of every level and cut axis ``(levels, k, *cells)``, with a border of zeros."""
    k = len(levels[0])
    cells = tuple(max(sides[axis] for sides in levels) + 2 for axis in range(k))
    bank = np.zeros((len(levels), k, *cells))
    for i, sides in enumerate(levels):
        inner = tuple(slice(1, side + 1) for side in sides)
        for cut in range(k):
            bank[(i, cut, *inner)] = eta_pattern(sides, cut)
    return bank


def eta_pattern(sides: tuple[int, ...], cut: int) -> np.ndarray:
    """Two bumps of opposite sign side by side along the axis ``cut``, of norm one (equation 2)."""
    first = sides[cut] // 2
    bumps = [_bump((*sides[:cut], n, *sides[cut + 1 :])) for n in (first, sides[cut] - first)]
    pattern = np.concatenate([bumps[0], -bumps[1]], axis=cut)
    return pattern / np.linalg.norm(pattern)


def _bump(sides: tuple[int, ...]) -> np.ndarray:
    """Concentric boxes with weights 1, 1/4, 1/9, ... from the centre outwards, of norm one."""
    if 0 in sides:
        return np.zeros(sides)
    n_boxes = max(sides) // 2 + 1
    tail = np.cumsum(1.0 / np.arange(n_boxes, 0, -1.0) ** 2)[::-1]  # tail[d] = sum_{j >= d}
    centre = np.array([side // 2 for side in sides]).reshape(-1, *(1,) * len(sides))
    bump = tail[np.abs(np.indices(sides) - centre).max(axis=0)]
    return bump / np.linalg.norm(bump)


def _tile_pattern(spatial: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Patterns on a grid of tiles ``(k, *spatial)``, one per cut axis, and each cell's tile."""
    sides = tuple(max(1, length // 5) for length in spatial)
    counts = [length // side for length, side in zip(spatial, sides, strict=True)]
    pattern = np.zeros((len(spatial), *spatial))
    inner, tile_of = [], []
    for length, side, count in zip(spatial, sides, counts, strict=True):
        first = (length - side * count) // 2
        inner.append(slice(first, first + side * count))
        tile_of.append(np.clip((np.arange(length) - first) // side, 0, count - 1))
    for cut in range(len(spatial)):
        pattern[(cut, *inner)] = np.tile(eta_pattern(sides, cut), counts)
    return pattern, tile_of
