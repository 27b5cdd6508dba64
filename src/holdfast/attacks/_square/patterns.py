"""The shapes that Square's changes take in l2 and l1: two bumps of opposite sign side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pattern:
    """How a bump falls off, and in which norm patterns have length one.

    Attributes:
        decay: The box at distance j from the centre adds ``j ** -decay``.
        order: Of the norm.
    """

    decay: float
    order: float

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """``values`` at length one."""
        return values / np.linalg.norm(values.ravel(), self.order)


L2_PATTERN = Pattern(decay=2.0, order=2.0)
"""Equation 2 of Andriushchenko et al. (2020)."""

L1_PATTERN = Pattern(decay=4.0, order=1.0)
"""Croce and Hein (2021, arXiv:2103.01208): sparser bumps, for a norm that favours few changes."""


def eta_pattern(sides: tuple[int, ...], cut: int, kind: Pattern = L2_PATTERN) -> np.ndarray:
    """Two bumps of opposite sign side by side along the axis ``cut``, of norm one (equation 2)."""
    first = sides[cut] // 2
    bumps = [_bump((*sides[:cut], n, *sides[cut + 1 :]), kind) for n in (first, sides[cut] - first)]
    return kind.scaled(np.concatenate([bumps[0], -bumps[1]], axis=cut))


def _bump(sides: tuple[int, ...], kind: Pattern) -> np.ndarray:
    """Concentric boxes whose weights fall from the centre outwards, of norm one."""
    if 0 in sides:
        return np.zeros(sides)
    n_boxes = max(sides) // 2 + 1
    # tail[d] = sum_{j >= d} of the weights 1, 2 ** -decay, 3 ** -decay, ...
    tail = np.cumsum(1.0 / np.arange(n_boxes, 0, -1.0) ** kind.decay)[::-1]
    centre = np.array([side // 2 for side in sides]).reshape(-1, *(1,) * len(sides))
    return kind.scaled(tail[np.abs(np.indices(sides) - centre).max(axis=0)])


def bank(levels: list[tuple[int, ...]], kind: Pattern) -> np.ndarray:
    """Patterns of every level and cut axis ``(levels, k, *cells)``, with a border of zeros."""
    k = len(levels[0])
    cells = tuple(max(sides[axis] for sides in levels) + 2 for axis in range(k))
    table = np.zeros((len(levels), k, *cells))
    for i, sides in enumerate(levels):
        inner = tuple(slice(1, side + 1) for side in sides)
        for cut in range(k):
            table[(i, cut, *inner)] = eta_pattern(sides, cut, kind)
    return table


def tiled(spatial: tuple[int, ...], kind: Pattern) -> tuple[np.ndarray, list[np.ndarray]]:
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
        pattern[(cut, *inner)] = np.tile(eta_pattern(sides, cut, kind), counts)
    return pattern, tile_of
