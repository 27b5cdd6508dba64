"""Certificates for discrete data against enumeration of all noisy copies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import holdfast
from holdfast.verifiers.discrete_noise import Ablation, Categories, Flips
from holdfast.verifiers.smoothing import ABSTAIN, SmoothedModel, certified_curve

FLIPS = Flips(add=0.1, delete=0.3)
BINARY, THREE = (0.0, 1.0), (0.0, 0.5, 1.0)


def likelihoods(noise, x, values):
    """Probability of every possible copy of ``x``, in the order of ``itertools.product``."""
    found = []
    for z in itertools.product(values, repeat=len(x)):
        p = 1.0
        for a, b in zip(x, z, strict=True):
            if isinstance(noise, Flips):
                q = noise.delete if a else noise.add
                p *= 1 - q if a == b else q
            else:
                p *= 1 - noise.change if a == b else noise.change / (len(values) - 1)
        found.append(p)
    return np.array(found)


def least_by_sorting(p, here, there):
    """The lemma of Neyman and Pearson on single copies."""
    order = np.argsort(-here / there)
    left, least = p, 0.0
    for i in order:
        share = min(1.0, left / here[i])
        left, least = left - share * here[i], least + share * there[i]
        if left <= 1e-15:
            return least
    return least


@pytest.mark.parametrize("p", [0.6, 0.8, 0.95, 0.999])
@pytest.mark.parametrize(
    ("noise", "values"),
    [(FLIPS, BINARY), (Flips(0.02, 0.6), BINARY), (Categories(0.3), BINARY),
     (Categories(0.4, THREE), THREE)],
)  # fmt: skip
def test_what_is_covered_is_what_enumeration_covers(noise, values, p):
    x = (1.0, 0.0, 0.0, 1.0, 0.0)
    here = likelihoods(noise, x, values)
    worst = {}
    for other in itertools.product(values, repeat=len(x)):
        r = sum(a != b for a, b in zip(x, other, strict=True))
        least = least_by_sorting(p, here, likelihoods(noise, other, values))
        worst[r] = min(worst.get(r, 1.0), least)
    point = torch.tensor(x)
    covered = [noise.covers(p, point, r) for r in range(1, 6)]
    assert covered == [worst[r] > 0.5 for r in range(1, 6)]
    radius = next((r for r in range(5) if not covered[r]), 5)
    assert noise.radius(p, point) == radius


def test_added_and_deleted_ones_count_apart():
    noise = Flips(add=0.01, delete=0.6)
    assert noise.covers_changes(0.95, added=0, deleted=2)
    assert not noise.covers_changes(0.95, added=2, deleted=0)


def test_ablation_counts_the_views_that_show_a_change():
    noise, x = Ablation(keep=3), torch.rand(10)
    for r in range(8):
        views = list(itertools.combinations(range(10), 3))
        seen = sum(any(i < r for i in view) for view in views) / len(views)
        for p in (0.55, 0.81, 0.99):
            assert noise.covers(p, x, r) == (p - seen > 0.5)
    assert not noise.covers(1.0, x, 8)


def test_ablation_shows_as_many_pixels_as_it_says():
    x = torch.rand(3, 5, 4) + 0.1
    copies = Ablation(keep=6, fill=-1.0).noisy(x, 50, torch.Generator().manual_seed(0))
    shown = copies != -1.0
    assert (shown.all(1) == shown.any(1)).all()
    assert (shown[:, 0].flatten(1).sum(1) == 6).all()
    assert torch.equal(copies[shown], x.expand(50, -1, -1, -1)[shown])
    single = Ablation(keep=6, fill=-1.0, whole_pixels=False)
    assert ((single.noisy(x, 50, torch.Generator()) != -1.0).flatten(1).sum(1) == 6).all()
    assert single.n_elements(x) == 60


@pytest.mark.parametrize(
    ("noise", "expected"),
    [(FLIPS, [0.3, 0.1]), (Categories(0.3), [0.3, 0.3]), (Categories(0.3, THREE), [0.3, 0.3])],
)
def test_elements_change_as_often_as_they_should(noise, expected):
    x = torch.tensor([1.0, 0.0])
    copies = noise.noisy(x, 40_000, torch.Generator().manual_seed(1))
    assert (copies != x).float().mean(0).tolist() == pytest.approx(expected, abs=0.01)
    if isinstance(noise, Categories) and len(noise.values) == 3:
        assert (copies[:, 1] == 0.5).float().mean() == pytest.approx(0.15, abs=0.01)


def majority(x):
    score = x.flatten(1).sum(1) - 0.5 * x[0].numel()
    return torch.stack([-score, score], 1)


@pytest.mark.parametrize("noise", [FLIPS, Categories(0.25), Ablation(keep=3, fill=0.5)])
def test_no_change_within_the_radius_alters_the_smoothed_answer(noise):
    d = 7
    copies = torch.tensor(list(itertools.product(BINARY, repeat=d)))
    answer = majority(copies).argmax(1).numpy()

    def share_of_ones(x):
        if not isinstance(noise, Ablation):
            return likelihoods(noise, x, BINARY) @ answer
        views = [[x[i] if i in view else 0.5 for i in range(d)]
                 for view in itertools.combinations(range(d), 3)]  # fmt: skip
        return majority(torch.tensor(views)).argmax(1).float().mean().item()

    smoothed = holdfast.smooth(majority, noise=noise, n=3000, n0=100, alpha=0.001)
    assert smoothed.norm == "l0"
    x = torch.tensor([[1.0] * 7, [1.0] * 6 + [0.0], [0.0] * 7, [1.0, 0.0] * 3 + [0.0]])
    found = smoothed.certify(x)
    assert found.radius.max() >= 1
    for one, prediction, radius in zip(x.tolist(), found.prediction, found.radius, strict=True):
        if prediction == ABSTAIN:
            continue
        for r in range(int(radius) + 1):
            for places in itertools.combinations(range(d), r):
                other = [1 - v if i in places else v for i, v in enumerate(one)]
                assert (share_of_ones(other) > 0.5) == (prediction == 1)


def test_curves_take_counts():
    smoothed = SmoothedModel(majority, noise=FLIPS, n=2000)
    found = smoothed.certify(torch.ones(3, 9))
    curve = certified_curve(found, [1, 1, 0], [0, 1, 100])
    assert curve.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3, 0])


def test_bytes_do_not_depend_on_the_batch():
    x = torch.ones(2, 9)
    one, two = (SmoothedModel(majority, noise=FLIPS, n=500, batch=b).certify(x) for b in (7, 1000))
    assert (one.p_lower == two.p_lower).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Flips(0.5, 0.6), "sum up to less than 1, got 0.5 and 0.6"),
        (lambda: Categories(0.7, THREE), "between 0 and 0.666667 for 3 values, got 0.7"),
        (lambda: Categories(0.1, (1.0, 0.0)), "ascending"),
        (lambda: Ablation(0), "keep must be at least 1, got 0"),
        (lambda: Ablation(9).noisy(torch.ones(4), 1, torch.Generator()), "has 4 elements"),
        (lambda: FLIPS.noisy(torch.tensor([0.3]), 1, torch.Generator()), "0.3, which is not among"),
        (lambda: SmoothedModel(majority, noise="salt"), "Ablation, Categories, Flips"),
    ],
)
def test_bad_input_is_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_large_inputs_take_no_time():
    x = torch.zeros(3, 64, 64)
    assert Ablation(keep=40).radius(0.999, x) > 20
    assert Categories(0.9, tuple(i / 255 for i in range(256))).radius(0.999, x) >= 1
    assert math.isfinite(Flips(0.01, 0.6).radius(0.9999, x))
