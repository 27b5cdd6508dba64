"""The losses against their formulas in float64, for any number of classes."""

import numpy as np
import pytest
import torch

from holdfast.attacks._losses import (
    best_other,
    cross_entropy,
    dlr,
    goal_margin,
    margin,
)

CLASSES = [2, 3, 4, 10, 1000]


def rows(k, n=64, scale=5.0):
    """Logits, labels and targets; every third row without a target."""
    g = torch.Generator().manual_seed(k)
    z = torch.randn(n, k, generator=g) * scale
    y = torch.randint(k, (n,), generator=g)
    target = (y + torch.randint(1, k, (n,), generator=g)) % k
    target[::3] = -1
    return z, y, target


def by_row(formula, z, y, target):
    z, y, target = z.double().numpy(), y.tolist(), target.tolist()
    return torch.tensor([formula(*row) for row in zip(z, y, target, strict=True)])


def other(z, y):
    return max(v for i, v in enumerate(z) if i != y)


def margin_formula(z, y, t):
    return (z[t] if t >= 0 else other(z, y)) - z[y]


def goal_formula(z, y, t):
    return z[t] - other(z, t) if t >= 0 else other(z, y) - z[y]


def cross_entropy_formula(z, y, t):
    log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
    return log_p[t] if t >= 0 else -log_p[y]


def dlr_formula(z, y, t):
    down = np.sort(z)[::-1]
    if len(z) == 2:
        return margin_formula(z, y, t)
    if t >= 0 and len(z) > 3:
        return (z[t] - z[y]) / (down[0] - (down[2] + down[3]) / 2 + 1e-12)
    return margin_formula(z, y, t) / (down[0] - down[2] + 1e-12)


LOSSES = [
    (margin, margin_formula),
    (goal_margin, goal_formula),
    (cross_entropy, cross_entropy_formula),
    (dlr, dlr_formula),
]
IDS = [loss.__name__ for loss, _ in LOSSES]


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=IDS)
def test_formulas(loss, formula, k):
    z, y, target = rows(k)
    expected = by_row(formula, z, y, target)
    torch.testing.assert_close(loss(z, y, target).double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=IDS)
def test_log_softmax_inputs(loss, formula, k):
    """All outputs negative: "other" must not be clipped at zero (the loss would be constant)."""
    z, y, target = rows(k)
    z = z.log_softmax(1).requires_grad_()
    value = loss(z, y, target)
    expected = by_row(formula, z.detach(), y, target)
    torch.testing.assert_close(value.detach().double(), expected, rtol=2e-5, atol=2e-5)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    # DLR is constant by design where y is the third class or worse
    is_right = (z.detach().argmax(1) == y) & (target < 0)
    assert (gradient.abs().sum(1) > 0)[is_right | (loss is not dlr)].all()


def test_clipping_others_at_zero_would_be_seen():
    z, y, target = rows(10)
    z = z.log_softmax(1)
    label = torch.nn.functional.one_hot(y, 10).bool()
    clipped = z.masked_fill(label, 0.0).amax(1) - z.gather(1, y[:, None]).squeeze(1)
    assert not torch.allclose(clipped[target < 0], margin(z, y, target)[target < 0])


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=IDS)
@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e20])
def test_ties_and_extreme_logits_stay_finite(loss, k, scale):
    """All logits equal, nearly equal, or so large that a softmax saturates."""
    z, y, target = rows(k)
    z = (z.sign() * scale).requires_grad_()
    value = loss(z, y, target)
    assert torch.isfinite(value).all()
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=IDS)
def test_rows_do_not_see_each_other(loss):
    z, y, target = rows(10)
    whole = loss(z, y, target)
    alone = torch.cat([loss(z[i : i + 1], y[i : i + 1], target[i : i + 1]) for i in range(len(z))])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", CLASSES)
def test_goal_margin_is_positive_exactly_when_the_goal_is_reached(k):
    z, y, target = rows(k, n=500)
    answer = z.argmax(1)
    reached = torch.where(target >= 0, answer == target, answer != y)
    assert torch.equal(goal_margin(z, y, target) > 0, reached)
    if k > 2:  # the pairwise margin is not the same
        assert not torch.equal(margin(z, y, target) > 0, reached)


def test_a_tie_is_not_a_win():
    z, y = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0])
    for target in (-1, 1):
        assert goal_margin(z, y, torch.tensor([target])).item() == 0


def test_losses_leave_the_logits_alone():
    z, y, target = rows(10)
    before = z.clone()
    for loss, _ in LOSSES:
        loss(z, y, target)
    best_other(z, y)
    assert torch.equal(z, before)


def test_shift_and_scale():
    """DLR does not change with either, the margin with shifts; cross-entropy sees the scale."""
    z, y, target = rows(10)
    torch.testing.assert_close(dlr(7 * z + 3, y, target), dlr(z, y, target), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(margin(z + 3, y, target), margin(z, y, target), rtol=0, atol=1e-5)
    assert not torch.allclose(cross_entropy(7 * z, y, target), cross_entropy(z, y, target))
