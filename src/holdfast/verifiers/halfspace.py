"""Boxes cut with halfspaces: where a violation could still be.

A bound of a property's row, ``row >= h . x + g``, says more than its least value: a violation needs
``row <= 0`` and hence ``h . x + g <= 0``. All other values of the network have to be bounded over
that part of the box only, which is small when the property nearly holds. It is the idea of bounds
under output constraints (Kotha et al., 2023, arXiv:2302.01404) with the constraint bounded first,
so that a single multiplier ``gamma >= 0`` is left:

    min A . x over the part >= max_gamma min (A + gamma h) . x + gamma g over the box
"""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.operator import Box
from holdfast.graphs.shapes import flattened
from holdfast.graphs.window import Window

BISECTIONS = 14


@final
@dataclass(frozen=True, slots=True)
class CutBox:
    """``lower <= x <= upper`` and ``h . x + g <= 0``.

    Attributes:
        lower: Least inputs ``(n, *shape)``.
        upper: Greatest inputs.
        h: Coefficients ``(n, *shape)``; zeros cut nothing.
        g: Constants ``(n,)``.
    """

    lower: Tensor
    upper: Tensor
    h: Tensor
    g: Tensor

    @property
    def is_box(self) -> bool:
        """Never."""
        return False

    def hull(self) -> Box:
        """The box."""
        return Box(self.lower, self.upper)

    def minimum(self, A: Tensor) -> Tensor:
        """The dual's value at a good multiplier: ``(n, k, *shape) -> (n, k)``.

        In float64 its rounding errors are subtracted, as sums with ``gamma h`` are formed here.
        """
        flat, h = flattened(A, 2), flattened(self.h).unsqueeze(1)
        middle = flattened((self.lower + self.upper) / 2)
        radius = flattened((self.upper - self.lower) / 2)
        gamma = self._multiplier(flat.detach(), middle, radius)
        B = torch.addcmul(flat, gamma.unsqueeze(2), h)
        value = _times(B, middle) - _times(B.abs(), radius) + gamma * self.g.unsqueeze(1)
        if A.dtype != torch.float64:
            return value
        most = flattened(torch.maximum(self.lower.abs(), self.upper.abs()))
        size = _times(flat.abs(), most) + gamma * (_times(h.abs(), most) + self.g.abs()[:, None])
        return value - (h.shape[2] + 16) * torch.finfo(A.dtype).eps * size

    @torch.no_grad()
    def _multiplier(self, flat: Tensor, middle: Tensor, radius: Tensor) -> Tensor:
        """Where the dual's slope in ``gamma`` changes sign, by bisection in float32 ``(n, k)``.

        Any multiplier is sound. The slope falls by ``2 |h_i| radius_i`` where ``A_i + gamma h_i``
        changes sign.
        """
        A, h = flat.float(), flattened(self.h).unsqueeze(1).float()
        middle, radius = middle.float(), radius.float()
        sign = torch.where(A == 0, h.sign(), A.sign())
        slope = _times(h, middle) + self.g.float().unsqueeze(1) - _times(sign, h[:, 0] * radius)
        crossing = torch.where(sign * h < 0, -A / h, torch.inf)
        drop = 2 * (h[:, 0].abs() * radius)
        scale = _times(A.abs(), radius) / _times(h.abs(), radius).clamp(min=1e-30)
        low, high = torch.zeros_like(slope), 8 * scale
        for _ in range(BISECTIONS):
            gamma = (low + high) / 2
            passed = (crossing < gamma.unsqueeze(2)).to(drop.dtype)
            rising = slope - _times(passed, drop) > 0
            low, high = torch.where(rising, gamma, low), torch.where(rising, high, gamma)
        gamma = torch.where((slope > 0) & torch.isfinite(low), low, 0.0)
        return gamma.to(flat.dtype)

    def argmin(self, A: Tensor) -> Tensor:
        """The box's corner at the multiplier; it may lie beyond the halfspace."""
        middle = flattened((self.lower + self.upper) / 2)
        radius = flattened((self.upper - self.lower) / 2)
        gamma = self._multiplier(flattened(A.detach(), 2), middle, radius)
        gamma = gamma.reshape(*gamma.shape, *[1] * (A.dim() - 2))
        B = A + gamma * self.h.unsqueeze(1)
        return torch.where(B > 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def rows(self, index: Tensor | slice) -> CutBox:
        """The samples at ``index``."""
        return CutBox(self.lower[index], self.upper[index], self.h[index], self.g[index])

    def windows(self, window: Window) -> CutBox:
        """Not kept: the halfspace reads inputs outside every window."""
        raise NotImplementedError("halfspaces are not seen through windows")

    def to(self, dtype: torch.dtype) -> CutBox:
        """In another precision, rounded to nearest."""
        moved = [t.to(dtype) for t in (self.lower, self.upper, self.h, self.g)]
        return CutBox(moved[0], moved[1], moved[2], moved[3])


def _times(A: Tensor, b: Tensor) -> Tensor:
    """``sum_i A_i b_i``: ``(n, k, p), (n, p) -> (n, k)``."""
    return torch.bmm(A, b.unsqueeze(2)).squeeze(2)
