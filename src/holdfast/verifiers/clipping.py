"""Boxes shrunk to where linear bounds leave room for a violation.

A clause is violated only where all of its rows are at most zero, so where every linear lower bound
``A x + b`` of a row is at most zero too. The least box around that part of a box follows input by
input from what the others leave (Zhou et al., 2025, arXiv:2512.11087, "relaxed clipping"; the
classical contraction of intervals by a linear inequality).
"""
# ruff: noqa: N803 - A is the matrix of the literature

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.graphs.operator import Box

SWEEPS = 2
"""Times all rows are gone through: each profits from what the others cut."""


def clipped(box: Box, A: Tensor, b: Tensor) -> Box:
    """The box within ``A_r x + b_r <= 0`` for all rows ``r``, rounded outward.

    Args:
        box: Least and greatest inputs, each ``(n, p)``.
        A: Coefficients ``(n, r, p)``.
        b: Constants ``(n, r)``.

    Returns:
        A box with ``lower > upper`` somewhere where nothing is left.
    """
    lower, upper = box
    unit = 4 * (A.shape[2] + 4) * torch.finfo(A.dtype).eps
    rising = A > 0
    share = torch.where(A == 0, torch.inf, A)
    for _ in range(SWEEPS):
        for r in range(A.shape[1]):
            a = A[:, r]
            least = torch.where(rising[:, r], a * lower, a * upper)
            size = (a.abs() * torch.maximum(lower.abs(), upper.abs())).sum(1) + b[:, r].abs()
            # Pays for the sums, and for the quotient too, which counts within the box only.
            rest = b[:, r] + least.sum(1) - unit * size
            end = (least - rest.unsqueeze(1)) / share[:, r]
            upper = torch.where(rising[:, r], torch.fmin(upper, end), upper)
            lower = torch.where(a < 0, torch.fmax(lower, end), lower)
    return Box(lower, upper)
