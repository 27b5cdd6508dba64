"""Clipped boxes lose no point that every limit allows, and become as small as that allows."""
# ruff: noqa: N806 - A is the matrix of the literature

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from holdfast.graphs.operator import Box
from holdfast.verifiers import clipping
from holdfast.verifiers.clipping import clipped


def cases(n, r, p, seed, scale=1.0):
    """Boxes with one fixed input, rows through a point of each box, some coefficients zero.

    The points lie where the first row is least, but for the last input, so that rounding decides.
    """
    rng = torch.Generator().manual_seed(seed)
    lower = scale * torch.randn(n, p, generator=rng, dtype=torch.float64)
    upper = lower + torch.rand(n, p, generator=rng, dtype=torch.float64)
    upper[:, 0] = lower[:, 0]
    A = torch.randn(n, r, p, generator=rng, dtype=torch.float64)
    A[:, :, 1] *= torch.rand(n, r, generator=rng) > 0.5
    point = torch.where(A[:, 0] > 0, lower, upper)
    share = torch.rand(n, generator=rng, dtype=torch.float64)
    point[:, -1] = lower[:, -1] + share * (upper - lower)[:, -1]
    return Box(lower, upper), A, -(A @ point.unsqueeze(2)).squeeze(2), point


def lost(clip, seed, scale):
    """How many allowed points of the boxes lie outside of the clipped ones."""
    box, A, b, point = cases(64, 3, 4, seed, scale)
    inner = clip(box, A, b)
    rng = torch.Generator().manual_seed(seed + 1)
    x = box.lower + torch.rand(500, *box.lower.shape, generator=rng, dtype=torch.float64) * (
        box.upper - box.lower
    )
    allowed = ((A @ x.unsqueeze(3)).squeeze(3) + b <= 0).all(2)
    outside = ((x < inner.lower) | (x > inner.upper)).any(2)
    edge = ((point < inner.lower) | (point > inner.upper)).any(1)
    return int((allowed & outside).sum()) + int(edge.sum())


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_allowed_is_lost(seed, scale):
    assert lost(clipped, seed, scale) == 0


@pytest.mark.parametrize(
    ("line", "defect"),
    [
        ("unit = 4 * (A.shape[2] + 4)", "unit = 0"),
        ("torch.where(rising[:, r], a * lower, a * upper)", "a * (lower + upper) / 2"),
        ("torch.where(a < 0,", "torch.where(a > 0,"),
        ("b[:, r] + least.sum(1)", "least.sum(1)"),
    ],
)
def test_planted_defects_lose_points(line, defect):
    source = inspect.getsource(clipping)
    assert line in source
    scope = {"__name__": "planted"}
    exec(compile(source.replace(line, defect), "planted", "exec"), scope)
    assert sum(lost(scope["clipped"], seed, 1e6) for seed in range(3)) > 0


def test_one_row_cuts_exactly():
    box, A, b, _ = cases(16, 1, 4, seed=5)
    inner = clipped(box, A, b)
    for i in range(16):
        sides = list(zip(box.lower[i].tolist(), box.upper[i].tolist(), strict=True))
        row = A[i].numpy(), -b[i].numpy()
        for axis in range(4):
            c = np.eye(4)[axis]
            low = linprog(c, *row, bounds=sides).fun
            high = -linprog(-c, *row, bounds=sides).fun
            assert float(inner.lower[i, axis]) == pytest.approx(low, abs=1e-6)
            assert float(inner.upper[i, axis]) == pytest.approx(high, abs=1e-6)


def test_what_no_row_allows_is_empty_and_what_is_unknown_stays():
    box = Box(torch.zeros(3, 2).double(), torch.ones(3, 2).double())
    A = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 1.0]]]).double()
    b = torch.tensor([[0.5], [-1.0], [-torch.inf]]).double()
    inner = clipped(box, A, b)
    assert bool((inner.lower[0] > inner.upper[0]).any())
    assert torch.equal(inner.lower[1:], box.lower[1:])
    assert torch.equal(inner.upper[1:], box.upper[1:])
