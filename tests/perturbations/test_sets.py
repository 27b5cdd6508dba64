"""The four norm balls against exact solvers; each check is shown to catch a wrong set."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.engine.random import Rng
from holdfast.perturbations.ball import Ball
from holdfast.perturbations.l0 import L0Ball
from holdfast.rows import like, take
from holdfast.threat import Domain
from oracles import BoxedBall, best_linear, nearest_distance

NORMS = ["linf", "l2", "l1", "l0"]
SLSQP = 1e-6  # relative to the size of the problem: what the solver's own stopping rule leaves


@dataclass(frozen=True)
class Case:
    """Samples in float64 with a point and a gradient each."""

    x: np.ndarray
    z: np.ndarray
    g: np.ndarray
    eps: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def bind(self, norm):
        domain = Domain(torch.as_tensor(self.lower), torch.as_tensor(self.upper))
        return Ball(norm, torch.as_tensor(self.eps)).bind(torch.as_tensor(self.x), domain)

    def balls(self, norm):
        return [
            BoxedBall(norm, x, float(e), self.lower, self.upper)
            for x, e in zip(self.x, self.eps, strict=True)
        ]


def random_case(norm, seed, n=3):
    """Per-sample radii and per-feature bounds; inputs often at the domain's ends, ties, zeros."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 6))
    lower = rng.choice([-1.0, 0.0], m)
    upper = lower + rng.choice([0.5, 1.0, 3.0], m)
    share = np.where(rng.random((n, m)) < 0.3, rng.integers(0, 2, (n, m)), rng.random((n, m)))
    x = lower + share * (upper - lower)
    z = x + rng.normal(size=(n, m)) * rng.choice([0.1, 1.0, 4.0]) * (rng.random((n, m)) < 0.8)
    if rng.random() < 0.3:
        z = np.round(z * 2) / 2
    g = rng.normal(size=(n, m)) * (rng.random((n, m)) < 0.8)
    size = m * rng.random(n) ** 2
    eps = {"l0": rng.integers(0, m + 1, n).astype(float), "linf": size / m}.get(norm, size)
    return Case(x, z, g, np.asarray(eps), lower, upper)


def check_project(norm, case, project):
    """A member, and no member is nearer."""
    found = project(case.bind(norm), torch.as_tensor(case.z)).numpy()
    for ball, z, u in zip(case.balls(norm), case.z, found, strict=True):
        assert ball.excess(u) <= 1e-12 * (1 + ball.eps)
        best = nearest_distance(ball, z)
        assert ((u - z) ** 2).sum() <= best + SLSQP * (1 + best)


def check_linear(norm, case, maximise):
    """A member, and no member has a larger product."""
    found = maximise(case.bind(norm), torch.as_tensor(case.g)).numpy()
    for ball, g, u in zip(case.balls(norm), case.g, found, strict=True):
        assert ball.excess(u) <= 1e-12 * (1 + ball.eps)
        assert g @ (u - ball.x) >= best_linear(ball, g) - SLSQP * (1 + np.abs(g).sum())


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_project_and_linear_maximum_are_exact(norm, seed):
    case = random_case(norm, seed)
    check_project(norm, case, lambda allowed, z: allowed.project(z))
    check_linear(norm, case, lambda allowed, g: allowed.maximise_linear(g))


def fails(check, norm, seed, method):
    try:
        check(norm, random_case(norm, seed), method)
    except AssertionError:
        return True
    return False


# Wrong sets, as found in the wild --------------------------------------------------------------


def _clip(allowed, z):
    return torch.minimum(torch.maximum(z, allowed.box_lower), allowed.box_upper)


def _rescaled(allowed, d, order):
    length = d.flatten(1).norm(p=order, dim=1)
    return like((allowed.radius / length.clamp_min(1e-300)).clamp_max(1.0), d) * d


def rescale_then_clip(allowed, z):
    return _clip(allowed, allowed.x + _rescaled(allowed, z - allowed.x, 2))


def clip_then_rescale(allowed, z):
    return allowed.x + _rescaled(allowed, _clip(allowed, z) - allowed.x, 2)


def factor_unclamped(allowed, z):
    """A point inside is pushed to the surface (clamps the point, not the factor)."""
    d = z - allowed.x
    length = d.norm(dim=1).clamp_min(1e-300)
    return _clip(allowed, allowed.x + (like(allowed.radius / length, d) * d).clamp(max=1.0))


def l1_without_box(allowed, z):
    free = type(allowed)(allowed.x, allowed.radius, allowed.box_lower - 9, allowed.box_upper + 9)
    return _clip(allowed, free.project(z))


def l1_rescaled(allowed, z):
    return _clip(allowed, allowed.x + _rescaled(allowed, z - allowed.x, 1))


def l0_one_more(allowed, z):
    return allowed.resized(allowed.radius + 1).project(z)


def l0_one_less(allowed, z):
    return allowed.resized((allowed.radius - 1).clamp_min(0)).project(z)


def l0_by_distance(allowed, z):
    """Ranks coordinates before the box has its say."""
    return allowed._keep(_clip(allowed, z), (z - allowed.x).square())


def linf_without_box(allowed, z):
    eps = like(allowed.radius, z)
    return torch.minimum(torch.maximum(z, allowed.x - eps), allowed.x + eps)


@pytest.mark.parametrize(
    ("norm", "wrong"),
    [
        ("l2", rescale_then_clip),
        ("l2", clip_then_rescale),
        ("l2", factor_unclamped),
        ("l1", l1_without_box),
        ("l1", l1_rescaled),
        ("l0", l0_one_more),
        ("l0", l0_one_less),
        ("l0", l0_by_distance),
        ("linf", linf_without_box),
    ],
)
def test_wrong_projections_are_caught(norm, wrong):
    assert any(fails(check_project, norm, seed, wrong) for seed in range(60))


@pytest.mark.parametrize("norm", NORMS)
def test_wrong_linear_maxima_are_caught(norm):
    def step(allowed, g):
        return allowed.project(allowed.x + 0.3 * g)

    def outwards(allowed, g):
        return allowed.maximise_linear(-g)

    for wrong in (step, outwards):
        assert any(fails(check_linear, norm, seed, wrong) for seed in range(60))


# Properties ------------------------------------------------------------------------------------


def big(norm, d, x_value=None, n=3):
    """A float32 set of images of ``d`` numbers."""
    rng = Rng.from_seed(d, n)
    shape = (1, d // 4, 4)
    x = rng.fold(0).uniform(shape)
    if x_value is not None:
        x = torch.full_like(x, x_value)
    eps = {"linf": 8 / 255, "l2": 3.0, "l1": 12.0, "l0": 20.0}[norm]
    return Ball(norm, eps).bind(x, Domain()), rng.fold(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("x_value", [None, 0.0, 1.0])
@pytest.mark.parametrize("d", [8, 784, 20_000])
def test_float32_results_are_members_by_the_stated_tolerance(norm, x_value, d):
    allowed, rng = big(norm, d, x_value)
    noise = rng.fold(0).normal(tuple(allowed.x.shape[1:]))
    points = {
        "far": allowed.project(allowed.x + 5 * noise),
        "at the edge": allowed.project(allowed.x + 3 / d**0.5 * noise),
        "linear": allowed.maximise_linear(noise),
        "sample": allowed.sample(rng.fold(1)),
    }
    for name, point in points.items():
        assert allowed.contains(point).all(), (name, allowed.distance(point) - allowed.radius)
        again = allowed.project(point)
        assert allowed.contains(again).all(), name
        torch.testing.assert_close(again, point, rtol=1e-5, atol=1e-6)


def test_l2_lengths_are_summed_pairwise():
    """``torch.norm`` is 8e-6 off at a million float32 numbers: outside, around a black image."""
    allowed, rng = big("l2", 1_000_000, 0.0, n=1)
    z = 10 * rng.uniform(tuple(allowed.x.shape[1:]))
    assert allowed.contains(allowed.project(z / 1e3)).all()
    naive = z * (allowed.radius / z.flatten(1).norm(dim=1))
    assert not allowed.contains(naive).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_tolerance_is_no_loophole(norm):
    """One thousandth more than the radius is refused."""
    allowed, rng = big(norm, 784, 0.5)
    shape = tuple(allowed.x.shape[1:])
    larger = allowed.resized(allowed.radius * 1.001).maximise_linear(rng.normal(shape))
    assert (allowed.distance(larger) > allowed.radius.double() * 1.0009).all()
    assert not allowed.contains(larger).any()
    assert (allowed.tolerance() < 1e-4 * allowed.radius.double()).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, float("nan"), float("inf")])
def test_no_tolerance_outside_the_domain(norm, value):
    allowed, _ = big(norm, 8)
    z = allowed.x.clone()
    z[:, 0, 0, 0] = value
    assert not allowed.contains(z).any()
    assert allowed.contains(allowed.x).all()


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_see_each_other(norm):
    case = random_case(norm, 7, n=6)
    allowed, z = case.bind(norm), torch.as_tensor(case.z)
    for i in range(6):
        row = torch.tensor([i])
        assert torch.equal(take(allowed, row).project(z[row]), allowed.project(z)[row])
        alone = take(allowed, row).maximise_linear(z[row])
        assert torch.equal(alone, allowed.maximise_linear(z)[row])


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_hull_is_the_smallest_box(norm, seed):
    """Every bound is reached by the linear maximum along that coordinate."""
    case = random_case(norm, seed, n=2)
    allowed = case.bind(norm)
    lower, upper = allowed.hull()
    for axis in range(case.x.shape[1]):
        g = torch.zeros_like(allowed.x)
        g[:, axis] = 1.0
        top, bottom = allowed.maximise_linear(g), allowed.maximise_linear(-g)
        torch.testing.assert_close(top[:, axis], upper[:, axis], rtol=0, atol=1e-12)
        torch.testing.assert_close(bottom[:, axis], lower[:, axis], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_samples_are_members_and_spread_over_the_set(norm):
    n = 4000
    x = torch.tensor([[0.5, 0.9, 0.5, 0.5]], dtype=torch.float64).expand(n, -1).clone()
    eps = {"linf": 0.2, "l2": 0.2, "l1": 0.2, "l0": 2.0}[norm]
    allowed = Ball(norm, eps).bind(x, Domain())
    z = allowed.sample(Rng.from_seed(3, n))
    assert allowed.contains(z).all()
    lower, upper = allowed.hull()
    share = (z - lower) / (upper - lower)
    assert (share.amin(0) < 0.1).all()
    assert (share.amax(0) > 0.9).all()
    centre = z.mean(0)[[0, 2, 3]]
    assert ((centre - 0.5).abs() < 0.02).all()
    distance = allowed.distance(z)
    if norm in ("l2", "l1"):  # uniform in the ball: (distance / eps)^d is uniform, but for the box
        inner = take(allowed, torch.arange(n)).resized(allowed.radius / 2)
        d = Ball(norm, 0.05).bind(x, Domain()).sample(Rng.from_seed(4, n)) - x
        q = (d.abs().sum(1) if norm == "l1" else d.norm(dim=1)) / 0.05
        assert abs(float((q**4).mean()) - 0.5) < 0.02
        assert (inner.radius == 0.1).all()
    if norm == "l0":
        assert (distance == 2).float().mean() > 0.99


@pytest.mark.parametrize("norm", NORMS)
def test_resized_and_empty_sets(norm):
    case = random_case(norm, 11, n=4)
    allowed = case.bind(norm)
    nothing = allowed.resized(torch.zeros(4, dtype=torch.float64))
    z = torch.as_tensor(case.z)
    for point in (
        nothing.project(z),
        nothing.maximise_linear(z),
        nothing.sample(Rng.from_seed(0, 4)),
    ):
        assert torch.equal(point, allowed.x)
    everything = allowed.resized(torch.full((4,), 1e3, dtype=torch.float64))
    torch.testing.assert_close(everything.project(z), _clip(allowed, z), rtol=0, atol=1e-15)
    for name in ("box_lower", "box_upper"):
        assert torch.equal(getattr(everything, name), getattr(allowed, name))


def test_l0_counts_whole_coordinates():
    """A bisected radius of 2.5 allows two changes, in ``project`` as in ``contains``."""
    x = torch.zeros(1, 6)
    allowed = Ball("l0", 3.0).bind(x, Domain()).resized(torch.tensor([2.5]))
    for z in (
        allowed.project(x + 1),
        allowed.maximise_linear(x + 1),
        allowed.sample(Rng.from_seed(0)),
    ):
        assert allowed.distance(z).item() == 2
        assert allowed.contains(z).all()


def test_l0_ranks_far_points_without_cancellation():
    """(z - x)^2 - (z - clipped)^2 in float32 is noise at z = 1e4; the gains differ by 10 %."""
    x = torch.tensor([[0.5, 0.45, 0.5]])
    allowed = Ball("l0", 1.0).bind(x, Domain())
    z = torch.full_like(x, 1e4)
    assert allowed.project(z).tolist() == [[0.5, 1.0, 0.5]]
    assert isinstance(allowed, L0Ball)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.5, 4.0, 30.0])
def test_zero_gradients_give_members_and_no_nan(norm, eps):
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    allowed = Ball(norm, float(round(eps)) if norm == "l0" else eps).bind(x, Domain())
    zero = torch.zeros_like(x)
    assert torch.equal(allowed.direction(zero), zero)
    assert allowed.contains(allowed.maximise_linear(zero)).all()
    assert torch.equal(allowed.project(x), x)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-22, 1.0, 1e18, 1e30])
def test_l2_direction_has_unit_length_for_gradients_of_any_size(size):
    """Saturated softmaxes give gradients of 1e-30, whose float32 squares are zero."""
    g = torch.tensor([[3.0, -4.0], [0.0, 1.0]]) * size
    direction = Ball("l2", 1.0).bind(torch.zeros(2, 2), Domain(-9, 9)).direction(g)
    torch.testing.assert_close(direction, torch.tensor([[0.6, -0.8], [0.0, 1.0]]))
