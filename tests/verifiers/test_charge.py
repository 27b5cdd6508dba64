"""What errors are charged by is never less than the sum of absolute coefficients."""
# ruff: noqa: N806 - A are the coefficients of the literature

from fractions import Fraction

import pytest
import torch

from holdfast.verifiers.crown import absolute_sum


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e-300, 1e140])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_it_bounds_the_sum_in_rational_numbers(size, scale):
    torch.manual_seed(size)
    A = torch.randn(2, 3, size, dtype=torch.float64)
    A[0, 0] = 1.0  # all alike: the two norms agree up to the root of the size
    A[0, 1] = 0.0
    A[0, 2, 1:] = 0.0
    A = A * scale
    bound = absolute_sum(A)
    for row, value in zip(A.flatten(0, 1).tolist(), bound.flatten().tolist(), strict=True):
        exact = sum(Fraction(abs(a)) for a in row)
        assert Fraction(value) * (1 + Fraction(1, 10**12)) >= exact
        assert value <= 2 * size * float(exact) + 1e-140
