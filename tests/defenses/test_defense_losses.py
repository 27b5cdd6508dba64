"""The losses that recipes minimise, as mathematics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from holdfast.defenses import _losses as losses

CERTAIN = torch.tensor([[200.0, -200.0, 0.0], [-1e4, 1e4, 3.0], [0.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 0, 2])


def some_logits(seed, n=6, k=4):
    generator = torch.Generator().manual_seed(seed)
    z, other = torch.randn(2, n, k, generator=generator, dtype=torch.float64).unbind()
    return 3 * z, 3 * other, torch.arange(n) % k


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_kl_is_that_of_probabilities(seed):
    z, other, _ = some_logits(seed)
    expected = F.kl_div(other.log_softmax(1), z.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(losses.kl(z, other), expected)
    assert (losses.kl(z, other) >= 0).all()
    torch.testing.assert_close(losses.kl(z, z + 5), torch.zeros(6, dtype=torch.float64))


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0, 10))
def test_mart_is_the_published_formula(seed, beta):
    z, adversarial, y = some_logits(seed)
    p, p_adv = z.softmax(1), adversarial.softmax(1)
    true, true_adv = (q.gather(1, y[:, None]).squeeze(1) for q in (p, p_adv))
    wrong = p_adv.scatter(1, y[:, None], 0).amax(1)
    boosted = -true_adv.log() - (1.0001 - wrong).log()
    divergence = (p * (p / p_adv).log()).sum(1)
    expected = boosted + beta * divergence * (1.0000001 - true)
    torch.testing.assert_close(losses.mart(z, adversarial, y, beta), expected)


def test_trades_without_beta_is_cross_entropy_bit_for_bit():
    z, adversarial, y = (t.float() if t.is_floating_point() else t for t in some_logits(3))
    assert torch.equal(losses.trades(z, adversarial, y, 0), F.cross_entropy(z, y, reduction="none"))
    assert not torch.equal(losses.trades(z, adversarial, y, 1), losses.trades(z, z, y, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["kl", "trades", "mart", "boosted", "smoothed"])
def test_finite_where_probabilities_are_0_and_1(loss, dtype):
    z = CERTAIN.clone().to(dtype).detach().requires_grad_()
    other = CERTAIN.flip(1).to(dtype).detach().requires_grad_()
    value = {
        "kl": lambda: losses.kl(z, other),
        "trades": lambda: losses.trades(z, other, LABELS, 6.0),
        "mart": lambda: losses.mart(z, other, LABELS, 5.0),
        "boosted": lambda: losses.boosted_cross_entropy(other, LABELS),
        "smoothed": lambda: losses.smoothed_cross_entropy(torch.stack([z, other]), LABELS),
    }[loss]()
    value.float().sum().backward()
    assert value.isfinite().all()
    assert other.grad is not None
    assert other.grad.isfinite().all()
    assert z.grad is None or z.grad.isfinite().all()


def test_the_clamped_formula_would_not_be_finite():
    """What the check above is for: probabilities first, logarithms after."""
    p, q = CERTAIN.softmax(1), CERTAIN.flip(1).softmax(1)
    assert not (p * (p / q).log()).sum(1).isfinite().all()


@pytest.mark.parametrize("function", [losses.kl, lambda z, o: losses.trades(z, o, LABELS, 6.0)])
def test_gradients_are_those_of_the_value(function):
    z, other, _ = some_logits(11, n=3, k=3)
    assert torch.autograd.gradcheck(function, (z.requires_grad_(), other.requires_grad_()))


def test_misalignment_is_one_minus_the_cosine():
    a, b, _ = some_logits(5)
    expected = 1 - F.cosine_similarity(a, b)
    torch.testing.assert_close(losses.misalignment(a, b), expected)
    torch.testing.assert_close(losses.misalignment(1e-30 * a, b), expected)
    torch.testing.assert_close(losses.misalignment(a, -a), torch.full((6,), 2.0).double())


def test_misalignment_of_nothing_is_none_and_differentiable():
    a = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [3.0, 4.0]], requires_grad=True)
    b = torch.tensor([[1.0, 0.0], [1e-30, 0.0], [4.0, 3.0]])
    value = losses.misalignment(a, b)
    value.sum().backward()
    torch.testing.assert_close(value, torch.tensor([0.0, 0.0, 1 - 24 / 25]))
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_worst_case_is_no_smaller_than_any_allowed_loss():
    z, other, y = some_logits(8)
    wrong = (torch.arange(4) != y[:, None]).nonzero()[:, 1].reshape(6, 3)
    gaps = [(t.gather(1, y[:, None]) - t).gather(1, wrong) for t in (z, other)]
    worst = losses.worst_case(torch.minimum(*gaps))
    for point in (z, other):
        assert (worst >= losses.cross_entropy(point, y) - 1e-12).all()
    torch.testing.assert_close(losses.worst_case(gaps[0]), losses.cross_entropy(z, y))


def test_smoothed_cross_entropy_averages_probabilities():
    z, other, y = some_logits(2)
    mean = (z.softmax(1) + other.softmax(1)) / 2
    expected = -mean.gather(1, y[:, None]).squeeze(1).log()
    torch.testing.assert_close(losses.smoothed_cross_entropy(torch.stack([z, other]), y), expected)
    one = losses.smoothed_cross_entropy(z[None], y)
    torch.testing.assert_close(one, losses.cross_entropy(z, y))
