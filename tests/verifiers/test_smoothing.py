"""Smoothing against closed forms: a linear model's probabilities and radii are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from holdfast.verifiers.smoothing import (
    ABSTAIN,
    Certified,
    binomial_lower,
    certified_curve,
    smooth,
    smoothed_radius,
)

WEIGHT, BIAS = torch.tensor([3.0, -4.0]), 0.5


def linear(x: Tensor) -> Tensor:
    """Class 1 where ``3 x0 - 4 x1 + 0.5 > 0``: its distance to the boundary is that over 5."""
    score = x @ WEIGHT.to(x.dtype) + BIAS
    return torch.stack([torch.zeros_like(score), score], 1)


def distance(x: Tensor) -> np.ndarray:
    return ((x @ WEIGHT + BIAS) / 5).numpy()


@pytest.mark.parametrize("n", [1, 7, 100])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_fails_in_at_most_alpha_of_all_experiments_exactly(n: int, alpha: float):
    k = np.arange(n + 1)
    bound = binomial_lower(k, n, alpha)
    for p in np.linspace(0.01, 0.999, 60):
        assert stats.binom.pmf(k[bound > p], n, p).sum() <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(
    ("k", "n", "alpha"), [(0, 10, 0.01), (7, 10, 0.01), (10, 10, 0.001), (99_900, 100_000, 0.001)]
)
def test_the_bound_equals_an_independent_one(k: int, n: int, alpha: float):
    other = stats.binomtest(k, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact").low
    assert binomial_lower(k, n, alpha) == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("target", [None, 0.05])
def test_failure_rate_over_a_thousand_certificates(target: float | None):
    """Certificates too large are no more than alpha allows, those of the plain frequency are."""
    alpha, n = 0.05, 400
    x = torch.tensor([[0.1, 0.05]])  # distance 0.12: p = 0.6844 at sigma = 0.25
    p = stats.norm.cdf(distance(x)[0] / 0.25)
    result = smooth(linear, alpha=alpha, n0=50, n=n).certify(x.repeat(1000, 1), target=target)
    allowed = stats.binom.ppf(0.9999, 1000, alpha)
    failures = ((result.prediction == 1) & (result.p_lower > p)).sum()
    assert failures <= allowed
    if target is None:
        assert failures > 5  # close to alpha, not idle
        plain = np.random.default_rng(0).binomial(n, p, 1000) / n
        assert (plain > p).sum() > allowed
    assert (result.radius[result.prediction == 1] > distance(x)[0]).sum() == failures


def test_certified_curve_equals_an_independent_computation():
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(60, 2)) * 0.2, dtype=torch.float32)
    y = (distance(x) > 0).astype(int)
    y[:5] = 1 - y[:5]
    model = smooth(linear, 0.3, n0=20, n=500, alpha=0.01, batch=64)
    result = model.certify(x)
    radii = np.linspace(0, 0.8, 9)
    curve = certified_curve(result, y, radii)
    for i in range(60):  # the same votes, counted and bounded another way
        noise = votes_of(model, x[i], i)
        first, rest = noise[:20], noise[20:520]
        chosen = int(first.sum() > 10)
        hits = int((rest == chosen).sum())
        low = stats.binomtest(hits, 500).proportion_ci(0.98, method="exact").low
        expected = 0.3 * stats.norm.ppf(low) if low > 0.5 else 0.0
        assert result.radius[i] == pytest.approx(expected, abs=1e-9)
        assert result.prediction[i] == (chosen if low > 0.5 else ABSTAIN)
    accuracy = [
        np.mean(
            [
                (r >= radius) and (c == t)
                for r, c, t in zip(result.radius, result.prediction, y, strict=True)
            ]
        )
        for radius in radii
    ]
    np.testing.assert_allclose(curve.accuracy, accuracy)
    ends = [
        stats.binomtest(round(a * 60), 60).proportion_ci(0.95, method="exact") for a in accuracy
    ]
    np.testing.assert_allclose(curve.lower, [e.low for e in ends], atol=1e-12)
    np.testing.assert_allclose(curve.upper, [e.high for e in ends], atol=1e-12)
    assert (np.diff(curve.accuracy) <= 0).all()


def votes_of(model, x: Tensor, sample: int) -> np.ndarray:
    state = np.random.SeedSequence([model.seed, sample]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]) >> 1)
    noise = torch.cat([torch.randn((50, 2), generator=generator) for _ in range(11)])
    return linear(x + model.sigma * noise).argmax(1).numpy()


def test_radius_approaches_the_exact_one_from_below():
    x = torch.tensor([[0.2, -0.1], [-0.3, 0.2], [0.0, 0.12]])
    result = smooth(linear, 0.5, n=20_000).certify(x)
    exact = np.abs(distance(x))
    assert (result.prediction == (distance(x) > 0)).all() or ABSTAIN in result.prediction
    sure = result.prediction != ABSTAIN
    assert sure[:2].all()
    assert (result.radius[sure] <= exact[sure]).all()
    assert (result.radius[:2] > 0.9 * exact[:2]).all()


def test_uniform_noise_certifies_in_l1():
    """One input, a step at 0: P(x + u > 0) = (x + lambda) / (2 lambda), so the radius is x."""
    model = smooth(lambda x: torch.cat([torch.zeros_like(x), x], 1), 0.5, noise="uniform", n=20_000)
    result = model.certify(torch.tensor([[0.4], [-0.3], [5.0]]))
    assert model.norm == "l1"
    assert result.prediction.tolist() == [1, 0, 1]
    assert 0.36 < result.radius[0] <= 0.4
    assert 0.26 < result.radius[1] <= 0.3
    assert result.radius[2] < np.sqrt(3) * 0.5


def test_a_point_on_the_boundary_is_abstained_from_and_early():
    x = torch.tensor([[0.0, 0.125]])
    model = smooth(linear, n=100_000)
    result = model.certify(x)
    assert result.prediction.tolist() == [ABSTAIN]
    assert result.radius.tolist() == [0]
    assert result.n_used[0] <= 100_100
    assert smooth(linear, n=2000).predict(x).tolist() == [ABSTAIN]
    far = torch.tensor([[1.0, 0.0]])
    assert smooth(linear, n=200).predict(far).tolist() == [1]


def test_stopping_early_changes_no_answer_without_a_target(monkeypatch: pytest.MonkeyPatch):
    x = torch.tensor(np.random.default_rng(2).normal(size=(40, 3)) * 0.2, dtype=torch.float32)
    model = smooth(lambda x: x, 0.5, n0=30, n=3000)  # three classes: often none has half the votes
    early = model.certify(x)
    monkeypatch.setattr("holdfast.verifiers.smoothing.FIRST_LOOK", 10**9)
    full = model.certify(x)
    np.testing.assert_array_equal(early.prediction, full.prediction)
    np.testing.assert_array_equal(early.radius, full.radius)
    assert 5 < (early.prediction == ABSTAIN).sum() < 35
    assert early.n_used.sum() < 0.8 * full.n_used.sum()


def test_a_target_is_reached_with_fewer_votes():
    x = torch.tensor([[1.0, 0.0]])
    model = smooth(linear, n=50_000)
    early = model.certify(x, target=0.25)
    assert early.radius[0] >= 0.25
    assert early.n_used[0] < 2000
    assert model.certify(x).n_used[0] == 50_100


def test_a_sample_does_not_depend_on_batch_or_neighbours():
    x = torch.tensor(np.random.default_rng(3).normal(size=(6, 2)) * 0.2, dtype=torch.float32)
    model = smooth(linear, n0=33, n=777, batch=1000)
    whole = model.certify(x)
    for batch, order in ((7, [3]), (50, [5, 0, 2]), (777, [4, 1])):
        part = smooth(linear, n0=33, n=777, batch=batch).certify(x[order], samples=order)
        np.testing.assert_array_equal(part.radius, whole.radius[order])
    other = smooth(linear, n0=33, n=777, seed=1).certify(x)
    assert (other.radius != whole.radius).any()


def test_denoiser_runs_before_the_model_and_modes_are_restored():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    net[1].eval()
    modes = [m.training for m in net.modules()]
    seen = []

    def denoise(x: Tensor) -> Tensor:
        seen.append(net[0].training)
        return x * 0

    result = smooth(net, n0=10, n=300, denoiser=denoise).certify(torch.ones(1, 2))
    assert (result.p_lower > 0.9).all()  # without noise every vote is the same
    assert not any(seen)
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0}, "sigma must be positive"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"alpha": 0.5}, "alpha must lie"),
        ({"n": 0}, "n must be at least 1"),
        ({"noise": "laplace"}, "'gaussian', 'uniform' or"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        smooth(linear, **options)


def test_bad_models_and_labels_are_refused():
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match="k >= 2"):
        smooth(lambda x: x.sum(1), n=10).certify(x)
    with pytest.raises(ValueError, match="not finite"):
        smooth(lambda x: x * float("nan"), n=10).certify(x)
    with pytest.raises(ValueError, match="2 inputs but 1"):
        smooth(linear, n=10).certify(x, samples=[0])
    with pytest.raises(ValueError, match="3 labels for 1"):
        certified_curve(Certified(*(np.zeros(1, int),) * 4), [0, 1, 2], [0])


def test_radius_formulas():
    assert smoothed_radius(0.5, 1.0) == 0
    assert smoothed_radius(0.2, 1.0) == 0
    assert smoothed_radius(stats.norm.cdf(1.7), 0.25) == pytest.approx(1.7 * 0.25)
    assert smoothed_radius(0.75, 1.0, "uniform") == pytest.approx(np.sqrt(3) / 2)
