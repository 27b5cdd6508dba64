"""What errors are charged by is never less than the sum of absolute coefficients."""
# ruff: noqa: N806 - A are the coefficients of the literature

from fractions import Fraction

import pytest
import torch

from holdfast.verifiers.attack import Rows
from holdfast.verifiers.crown import absolute_sum
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.search import charged


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


def test_terms_of_the_rows_own_are_charged():
    """The least value of ``D x + d`` stays below the exact one, which uncharged it does not."""
    torch.manual_seed(0)
    p, n = 12, 400
    lower = torch.randn(n, p, dtype=torch.float64)
    upper = lower + torch.rand_like(lower)
    D, C = torch.randn(n, 1, p, dtype=torch.float64), torch.zeros(n, 1, 1, dtype=torch.float64)
    # Constants that cancel the rest, as at the border of what can be proven.
    d = -BoxRegion(lower, upper).minimum(D)
    rows = charged(Rows(lower, upper, C, D, d), 2 * (2 * p + 64) * 2.0**-53)
    beyond = 0
    for i in range(n):
        exact = Fraction(float(d[i, 0]))
        for a, low, high in zip(*(t[i].flatten().tolist() for t in (D, lower, upper)), strict=True):
            exact += min(Fraction(a) * Fraction(low), Fraction(a) * Fraction(high))
        value = BoxRegion(lower[i : i + 1], upper[i : i + 1]).minimum(D[i : i + 1])
        beyond += Fraction(float(value + d[i])) > exact
        assert Fraction(float(value + rows.d[i])) <= exact
    assert beyond > 0
