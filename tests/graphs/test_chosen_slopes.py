"""One step with chosen slopes does what lines and their gradients do."""

import torch

from holdfast.graphs.operator import pull_lines
from holdfast.graphs.operators.relu import ChosenSlopes, ReLU


def test_coefficients_constants_and_gradients_are_those_of_the_lines():
    torch.manual_seed(0)
    rows, weight = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)
    chosen = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    lower = torch.randn(3, 1, 4, 5, dtype=torch.float64) - 0.5
    upper = lower + 2 * torch.rand_like(lower)
    unstable = ((lower < 0) & (upper > 0)).double()
    assert 0 < unstable.mean() < 1
    op, outcomes = ReLU(), []
    fixed = op.relax(lower, upper, torch.zeros(1, *lower.shape, dtype=torch.float64))
    for pull in (
        lambda rows, slopes: ChosenSlopes.apply(rows, slopes, fixed, unstable),
        lambda rows, slopes: pull_lines(rows, op.relax(lower, upper, slopes.unsqueeze(0))),
    ):
        leaves = rows.clone().requires_grad_(), chosen.clone().requires_grad_()
        coefficients, constant = pull(*leaves)
        coefficients = coefficients[0] if isinstance(coefficients, tuple) else coefficients
        score = (coefficients * weight).sum() + (constant * weight[..., 0, 0]).sum()
        outcomes.append((coefficients, constant, *torch.autograd.grad(score, leaves)))
    for ours, reference in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
