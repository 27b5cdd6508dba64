# ruff: noqa: N803, N806 - A is the matrix of the literature
import itertools

import pytest
import torch

from holdfast.graphs.operator import Box
from holdfast.graphs.operators.softmax import LogSoftmax

N, K, SHAPE, AXIS = 3, 7, (4, 5), 1
MASK = torch.ones(1, *SHAPE, dtype=torch.float64)
MASK[0, 0, 1:4], MASK[0, 2] = 0.0, 0.0  # one group keeps two elements, another none


def box(width, centre=0.0):
    middle = torch.randn(N, *SHAPE, dtype=torch.float64) + centre
    reach = width * torch.rand(N, *SHAPE, dtype=torch.float64)
    return Box(middle - reach, middle + reach)


def samples(box, count=400):
    share = torch.rand(count, *box.lower.shape, dtype=torch.float64)
    corners = torch.where(torch.rand_like(share) < 0.7, share.round(), share)
    return box.lower + corners * (box.upper - box.lower)


def coefficients():
    A = torch.randn(N, K, *SHAPE, dtype=torch.float64)
    A[:, 0], A[:, 1] = A[:, 0].abs(), -A[:, 1].abs()  # both sides of every sum
    return A


def slack(op, A, box, share=None):
    """Least and mean distance of sampled values from the plane, against the size of the terms."""
    pulled = op.pull(A, [box], None if share is None else share[None])
    z = samples(box)
    value = torch.einsum("nk...,sn...->snk", A, op.run(z.flatten(0, 1)).reshape(z.shape))
    plane = torch.einsum("nk...,sn...->snk", pulled.coefficients[0], z) + pulled.constant
    size = 1 + A.abs().flatten(2).sum(2) * (1 + box.magnitude().amax())
    gap = (value - plane) / size
    return float(gap.min()), float(gap.mean())


@pytest.mark.parametrize("seen", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("centre", [0.0, 900.0, -900.0])
@pytest.mark.parametrize("width", [0.0, 1e-13, 1e-6, 0.3, 4.0, 60.0, 2000.0])
def test_planes_hold_for_every_choice(width, centre, seen):
    torch.manual_seed(0)
    op, at = LogSoftmax(AXIS, seen), box(width, centre)
    for share in (None, 0.0, 1.0, "random"):
        shares = share
        if share is not None:
            shares = torch.rand(N, K, *SHAPE, dtype=torch.float64)
            shares = shares if share == "random" else torch.full_like(shares, share)
        assert slack(op, coefficients(), at, shares)[0] >= -1e-14


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_tangents_touch_where_the_parameter_says(share):
    torch.manual_seed(1)
    op, at, A = LogSoftmax(AXIS), box(1.0), coefficients()
    z = at.lower + share * (at.upper - at.lower)
    below = A.sum(AXIS + 2).amax(2) < 0  # all groups by the tangent
    assert bool(below.any())
    pulled = op.pull(A, [at], torch.full((1, N, 1, *SHAPE), share, dtype=torch.float64))
    plane = torch.einsum("nk...,n...->nk", pulled.coefficients[0], z) + pulled.constant
    value = torch.einsum("nk...,n...->nk", A, op.run(z))
    torch.testing.assert_close(plane[below], value[below])


@pytest.mark.parametrize(("width", "most"), [(1e-3, 1e-7), (0.1, 1e-3)])
def test_planes_are_close_over_small_boxes(width, most):
    torch.manual_seed(1)
    assert slack(LogSoftmax(AXIS), coefficients(), box(width))[1] < most


@pytest.mark.parametrize("width", [2.0, 40.0])
def test_intervals_are_exact(width):
    torch.manual_seed(2)
    at = Box(*(t[:, :3] for t in box(width)))
    found = LogSoftmax(0).interval(at)
    for k, sign in itertools.product(range(3), (1, -1)):
        low, high = (at.lower, at.upper) if sign > 0 else (at.upper, at.lower)
        z = high.clone()
        z[:, k] = low[:, k]
        end = (found.lower if sign > 0 else found.upper)[:, k]
        torch.testing.assert_close(end, z.log_softmax(1)[:, k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (6, 3)])
def test_groups_of_any_size(shape):
    op = LogSoftmax(0)
    middle = torch.randn(N, *shape, dtype=torch.float64)
    at = Box(middle - 0.5, middle + 0.5)
    found, z = op.interval(at), samples(at)
    value = op.run(z.flatten(0, 1)).reshape(z.shape)
    assert bool((value >= found.lower - 1e-12).all())
    assert bool((value <= found.upper + 1e-12).all())
    A = torch.randn(N, K, *shape, dtype=torch.float64)
    assert slack(op, A, at)[0] >= -1e-14


def test_elements_that_are_masked_change_nothing():
    torch.manual_seed(3)
    op, at, A = LogSoftmax(AXIS, MASK), box(1.0), coefficients()
    hidden = (MASK == 0).expand(N, -1, -1)
    other = Box(*(torch.where(hidden, t + 1e6, t) for t in at))
    for one, two in zip(op.pull(A, [at]), op.pull(A, [other]), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    for end in op.interval(other):
        assert not bool(end[hidden].any())
    assert not bool(op.pull(A, [at]).coefficients[0][hidden.unsqueeze(1).expand_as(A)].any())


def test_rounding_is_charged_for_all_that_is_summed():
    torch.manual_seed(4)
    for width in (0.1, 5.0, 500.0):
        op, at, A = LogSoftmax(AXIS), box(width, 30.0), coefficients()
        for share in (0.0, 0.5, 1.0):
            shares = torch.full((N, K, *SHAPE), share, dtype=torch.float64)
            pulled = op.pull(A, [at], shares[None])
            beside = (pulled.coefficients[0] - A).abs() * at.magnitude().unsqueeze(1)
            total = beside.flatten(2).sum(2) + pulled.constant.abs()
            charged = (A.abs() * op.magnitude(at).unsqueeze(1)).flatten(2).sum(2)
            assert bool((total <= charged).all())


def test_gradients_are_numbers_where_nothing_is_seen():
    torch.manual_seed(5)
    lower = torch.randn(N, *SHAPE, dtype=torch.float64, requires_grad=True)
    upper = (lower.detach() + 1).requires_grad_(True)
    op, at = LogSoftmax(AXIS, MASK), Box(lower, upper)
    found = [*op.interval(at), op.pull(coefficients(), [at]).constant]
    gradients = torch.autograd.grad(sum(t.sum() for t in found), [lower, upper])
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())
