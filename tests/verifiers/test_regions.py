# ruff: noqa: N806 - A, C, D and W are the matrices of the literature
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from holdfast.verifiers.regions import BoxRegion, threat_region


def exact(a, x, eps, norm, low, high):
    """The minimum of ``a . x`` over the ball cut with the box, by a general solver."""
    p = len(a)
    if norm == "l1":
        # d = up - down with up + down summing to at most eps.
        bounds = [(0, high - v) for v in x] + [(0, v - low) for v in x]
        solved = linprog(np.r_[a, -a], A_ub=np.ones((1, 2 * p)), b_ub=[eps], bounds=bounds)
        return a @ x + solved.fun
    if norm == "l0":
        room = np.where(a > 0, x - low, high - x)
        return a @ x - np.sort(np.abs(a) * room)[::-1][: int(eps)].sum()
    solved = minimize(
        lambda d: a @ d,
        np.zeros(p),
        jac=lambda d: a,
        bounds=[(low - v, high - v) for v in x],
        constraints={"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return a @ x + solved.fun


@pytest.mark.parametrize("norm", ["l1", "l2", "l0"])
@settings(max_examples=25, deadline=None)
@example(seed=67543, eps=0.0)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_minimum_over_balls_cut_with_boxes(norm, seed, eps):
    rng = np.random.default_rng(seed)
    x, a = rng.uniform(0, 1, 6), rng.normal(size=6)
    region = threat_region(torch.from_numpy(x)[None], eps, norm, 0.0, 1.0)
    A = torch.from_numpy(a).reshape(1, 1, 6)
    found, truth = float(region.minimum(A)), exact(a, x, eps, norm, 0.0, 1.0)
    assert found == pytest.approx(truth, abs=2e-6)
    point = region.argmin(A)[0, 0]
    assert float(point @ A[0, 0]) == pytest.approx(found, abs=1e-6)
    assert bool(((point >= -1e-12) & (point <= 1 + 1e-12)).all())


def test_linf_is_a_box_and_errors_teach():
    x = torch.full((1, 3), 0.1)
    box = threat_region(x, 0.3, "linf").hull()
    torch.testing.assert_close(box.lower, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="outside their domain"):
        threat_region(x + 2, 0.1, "linf")
    with pytest.raises(ValueError, match="eps must be"):
        threat_region(x, -0.1, "linf")
    with pytest.raises(ValueError, match="allowed: linf, l2, l1, l0"):
        threat_region(x, 0.1, "l7")


def test_minimum_over_a_fixed_box_has_its_corner_as_gradient():
    torch.manual_seed(0)
    lower = torch.randn(3, 2, 4, dtype=torch.float64)
    fixed = BoxRegion(lower, lower + torch.rand_like(lower))
    free = BoxRegion(lower.clone().requires_grad_(), fixed.upper)
    rows = torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, dtype=torch.float64)
    found = []
    for region in (fixed, free):
        value = region.minimum(rows)
        found.append((value.detach(), torch.autograd.grad((value * weight).sum(), rows)[0]))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
