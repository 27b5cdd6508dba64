"""Lines of smooth functions hold in exact arithmetic where they touch the function."""

from decimal import Decimal, localcontext

import pytest
import torch

from holdfast.graphs.operators.power import Exp
from holdfast.graphs.operators.sigmoid import Tanh

DIGITS = 60


def exact_exp(z):
    return Decimal(z).exp()


def exact_tanh(z):
    up, down = Decimal(z).exp(), (-Decimal(z)).exp()
    return (up - down) / (up + down)


@pytest.mark.parametrize(
    ("op", "exact", "begin"), [(Exp(), exact_exp, -3.0), (Tanh(), exact_tanh, 0.1)]
)
def test_lines_hold_where_they_touch(op, exact, begin):
    torch.manual_seed(0)
    lower = begin + 2 * torch.rand(1, 1, 200, dtype=torch.float64)
    upper = lower + 0.5 * torch.rand(1, 1, 200, dtype=torch.float64)
    lines = op.relax(lower, upper, None)
    with localcontext() as context:
        context.prec = DIGITS
        for z in (lower, upper, (lower + upper) / 2):
            columns = (z, *lines)
            for at, *line in zip(*(t.flatten().tolist() for t in columns), strict=True):
                low_slope, low, high_slope, high = map(Decimal, line)
                value = exact(at)
                assert low_slope * Decimal(at) + low <= value
                assert high_slope * Decimal(at) + high >= value
