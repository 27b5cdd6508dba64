"""Square: its windows, its patterns, its search, any shape of input, and a real model."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks._losses import goal_margin
from holdfast.attacks._square.patterns import L1_PATTERN, eta_pattern
from holdfast.attacks._square.windows import HALVINGS, layout, window_sides
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.square import Square
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball
from holdfast.rows import join, put, take
from holdfast.threat import Domain

SHAPES = [(3, 8, 8), (1, 6, 11), (2, 12, 5), (7, 9), (30,), (1,), (2, 40), (2, 4, 5, 6), (1, 1, 9)]
EPS = {"linf": 0.1, "l2": 0.7, "l1": 1.5}


def linear(shape, k=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), k))


def pose(model, shape, norm, n=5, seed=0, target=None, domain=None):
    rng = Rng.from_seed(seed, n)
    domain = domain or Domain()
    x = domain.lower + rng.fold(1).uniform(shape) * domain.width
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    target = torch.full_like(y, -1) if target is None else (y + target) % logits.shape[1]
    return Problem(x, y, target, Ball(norm, EPS[norm]).bind(x, domain), rng, logits)


def heard(model, state, points):
    with torch.no_grad():
        logits = model(points)
    return logits, Answer(logits, logits[:, 0], logits)


def trace(attack, model, problem):
    """Points and logits of every step until all rows have finished."""
    state, found = attack.init(problem), []
    while not bool(state.finished.all()):
        points = attack.ask(state).points
        logits, answer = heard(model, state, points)
        found.append((points, goal_margin(logits, problem.y, problem.target)))
        state = attack.tell(state, answer)
    return state, found


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_stays_inside_and_climbs(norm, shape):
    model = linear(shape)
    problem = pose(model, shape, norm)
    state, found = trace(Square(queries=60), model, problem)
    assert len(found) == 60
    for points, _ in found:
        assert points.shape == problem.x.shape
        assert problem.allowed.contains(points).all()
    margins = torch.stack([value for _, value in found])
    assert torch.equal(state.best_margin, margins.amax(0))
    assert (margins.amax(0) >= margins[0]).all()
    if np.prod(shape) > 20:
        assert (margins.amax(0) > margins[0]).any()
    logits, _ = heard(model, state, state.best)
    assert torch.equal(goal_margin(logits, problem.y, problem.target), state.best_margin)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("domain", [Domain(-1, 1), Domain(0, 255), Domain(2, 3)])
def test_any_domain(norm, domain):
    model = linear((1, 6, 6))
    problem = pose(model, (1, 6, 6), norm, domain=domain)
    _, found = trace(Square(queries=20), model, problem)
    assert all(problem.allowed.contains(points).all() for points, _ in found)


def test_linf_start_is_stripes_at_the_corners():
    problem = pose(linear((3, 8, 6)), (3, 8, 6), "linf", n=50)
    points = Square().ask(Square().init(problem)).points
    lower, upper = problem.allowed.hull()
    assert ((points == lower) | (points == upper)).all()
    up = (points == upper) & (lower < upper)
    assert torch.equal(up.any(2), up.all(2))  # one sign along a column
    assert 0.4 < up.float().mean() < 0.6


def test_linf_steps_change_one_square_window_to_the_corners():
    shape, n = (2, 9, 14), 64
    model = linear(shape)
    problem = pose(model, shape, "linf", n=n)
    attack = Square(queries=400)
    state = attack.init(problem)
    lower, upper = problem.allowed.hull()
    corners = set()
    for step in range(60):
        best = state.best
        _, answer = heard(model, state, state.points)
        is_better = goal_margin(answer.logits, state.y, state.target) >= state.best_margin
        best = torch.where(is_better[:, None, None, None], state.points, best)
        state = attack.tell(state, answer)
        assert torch.equal(state.best, best)
        changed = state.points != best
        side = window_sides((9, 14), 0.8 / 2 ** sum(step > h for h in HALVINGS), False)
        for row in changed.any(1):
            if row.any():
                ys, xs = row.nonzero(as_tuple=True)
                height, width = ys.max() - ys.min() + 1, xs.max() - xs.min() + 1
                assert height <= side[0]
                assert width <= side[1]
        assert ((state.points == lower) | (state.points == upper) | ~changed).all()
        corners.update(map(tuple, changed.any(1).nonzero()[:, 1:].tolist()))
    assert len(corners) == 9 * 14  # windows come everywhere, the last row and column too


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rows_are_their_own(norm):
    """Rows taken out, put back, joined, beside rows at other steps: the same bits."""
    shape = (2, 7, 9)
    model, attack = linear(shape), Square(queries=30)
    problem = pose(model, shape, norm, n=6)
    whole, found = trace(attack, model, problem)
    late = attack.init(take(problem, torch.arange(3, 6)))
    state = attack.init(take(problem, torch.arange(3)))
    for step in range(30):
        if step == 7:
            state = join([state, late])
        points = attack.ask(state).points
        assert torch.equal(points[:3], found[step][0][:3])
        if step >= 7:
            assert torch.equal(points[3:], found[step - 7][0][3:])
        answers = torch.cat([heard(model, state, p[None])[0] for p in points])
        state = attack.tell(state, Answer(answers, answers[:, 0], answers))
    shifted = put(attack.init(problem), torch.tensor([0, 2]), take(whole, torch.tensor([4, 5])))
    assert torch.equal(shifted.best[0], whole.best[4])
    assert torch.equal(shifted.points[2], whole.points[5])


def test_windows_shrink_on_schedule():
    assert window_sides((28, 28), 0.8, False) == (25, 25)
    assert window_sides((28, 28), 0.8 / 512, False) == (1, 1)
    assert window_sides((28, 28), 0.8 / 512, True) == (3, 3)
    assert window_sides((28, 28), 1.0, True) == (28, 28)
    assert window_sides((4, 100), 0.8, False) == (4, 18)
    assert window_sides((50,), 0.5, False) == (25,)
    plain, rescaled = Square(queries=1000), Square(queries=1000, rescale_schedule=True)
    problem = pose(linear((1, 8, 8)), (1, 8, 8), "linf")
    assert plain.init(problem).windows.halvings.tolist() == list(HALVINGS)
    assert rescaled.init(problem).windows.halvings.tolist() == [h // 10 for h in HALVINGS]


def test_layouts():
    assert layout((3, 32, 20)) == (3, (32, 20))
    assert layout((28, 28)) == (1, (28, 28))
    assert layout((12, 500)) == (12, (500,))
    assert layout((41,)) == (1, (41,))
    assert layout((1, 9, 8, 7)) == (1, (9, 8, 7))


def test_vectors_have_a_sign_per_feature():
    problem = pose(linear((200,)), (200,), "linf", n=8)
    points = Square().init(problem).points
    up = points > problem.x
    assert ((up.float().mean(1) - 0.5).abs() < 0.2).all()


@pytest.mark.parametrize(
    "sides", [(3, 3), (5, 5), (7, 7), (25, 25), (4, 9), (1, 6), (11,), (3, 3, 5)]
)
def test_patterns_are_two_bumps_of_opposite_sign(sides):
    for cut in range(len(sides)):
        eta = eta_pattern(sides, cut)
        assert eta.shape == sides
        assert abs((eta**2).sum() - 1) < 1e-12
        first, second = np.split(eta, [sides[cut] // 2], axis=cut)
        assert (first > 0).all()
        assert (second < 0).all()
        if first.size:
            assert abs((first**2).sum() - 0.5) < 1e-12


def test_pattern_of_side_three_by_hand():
    """Boxes around the centre (0, 1) of the upper row and (1, 1) of the two lower ones."""
    upper = np.array([[1 / 4, 5 / 4, 1 / 4]])
    lower = np.array([[1 / 4, 1 / 4, 1 / 4], [1 / 4, 5 / 4, 1 / 4]])
    parts = [upper / np.linalg.norm(upper), -lower / np.linalg.norm(lower)]
    np.testing.assert_allclose(eta_pattern((3, 3), 0), np.concatenate(parts) / 2**0.5)
    np.testing.assert_allclose(eta_pattern((3, 3), 1), np.concatenate(parts).T / 2**0.5)


def test_l2_uses_the_whole_radius_where_the_box_leaves_room():
    shape = (3, 10, 10)
    model = linear(shape)
    problem = pose(model, shape, "l2")
    problem = replace(problem, x=torch.full_like(problem.x, 0.5))
    problem = replace(problem, allowed=Ball("l2", 0.4).bind(problem.x, Domain(-9, 9)))
    _, found = trace(Square(queries=30), model, problem)
    for points, _ in found:
        distance = problem.allowed.distance(points)
        torch.testing.assert_close(distance, problem.allowed.radius.double(), rtol=1e-5, atol=0)


def test_l1_bumps_fall_off_with_the_fourth_power_and_have_mass_one():
    upper = np.array([[1 / 16, 17 / 16, 1 / 16]])
    lower = np.array([[1 / 16, 1 / 16, 1 / 16], [1 / 16, 17 / 16, 1 / 16]])
    parts = [upper / upper.sum() / 2, -lower / lower.sum() / 2]
    np.testing.assert_allclose(eta_pattern((3, 3), 0, L1_PATTERN), np.concatenate(parts))


def in_the_open(shape, eps, n=8):
    """A problem in l1 whose box is so wide that only the ball matters."""
    problem = pose(linear(shape), shape, "l1", n=n)
    x = torch.full_like(problem.x, 0.5)
    return replace(problem, x=x, allowed=Ball("l1", eps).bind(x, Domain(-50, 50)))


def test_l1_moves_carry_the_mass_of_two_windows_and_touch_nothing_else():
    """One channel: a window takes over exactly what the other gives away and what is unused."""
    problem = in_the_open((1, 12, 12), 4.0)
    attack, model = Square(queries=300), linear((1, 12, 12))
    state = attack.init(problem)
    for step in range(40):
        _, answer = heard(model, state, state.points)
        state = attack.tell(state, answer)
        distance = problem.allowed.distance(state.points)
        torch.testing.assert_close(distance, torch.full_like(distance, 4.0), rtol=1e-5, atol=0)
        side = window_sides((12, 12), 0.8 / 2 ** sum(step > h for h in HALVINGS), True)[0]
        for row in ((state.points - state.best).abs() > 1e-6).any(1):
            assert row.any()  # some 16 of 100 windows at the very least
            assert row.sum() <= 2 * side**2


def test_l1_windows_of_many_channels_make_the_change_sparser():
    """Each channel gets c times its share, so that the projection undoes small changes."""

    def changed(c, n_steps=60):
        problem = in_the_open((c, 12, 12), 4.0)
        attack, model = Square(queries=300), linear((c, 12, 12))
        state = attack.init(problem)
        for _ in range(n_steps):
            state = attack.tell(state, heard(model, state, state.points)[1])
        assert problem.allowed.contains(state.best).all()
        distance = problem.allowed.distance(state.best)
        assert (distance > 3.99).all()
        return ((state.best - problem.x) != 0).flatten(1).double().mean(1).mean()

    assert changed(3) < 0.25 * changed(1)


def test_l1_start_keeps_the_heart_of_every_tile():
    problem = in_the_open((1, 10, 10), 5.0)
    delta = (Square().init(problem).points - 0.5)[:, 0]
    tiles = delta.reshape(-1, 5, 2, 5, 2).abs().amax((2, 4))
    assert (tiles > 0.05).all()
    torch.testing.assert_close(delta.abs().sum((1, 2)), torch.full((8,), 5.0))
    sparser = in_the_open((1, 25, 25), 1.0)
    kept = ((Square().init(sparser).points - 0.5) != 0).flatten(1).sum(1)
    assert (kept <= 50).all()  # at most the two hearts of each of the 25 tiles


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targets_are_reached_not_just_preferred(norm):
    """The best point is that of the target's margin against all classes."""
    shape = (1, 8, 8)
    model = linear(shape, k=5)
    problem = pose(model, shape, norm, n=20, target=2)
    state, _ = trace(Square(queries=150), model, problem)
    logits, _ = heard(model, state, state.best)
    before = goal_margin(problem.logits, problem.y, problem.target)
    assert (state.best_margin > before).float().mean() > 0.9
    assert torch.equal(state.best_margin > 0, logits.argmax(1) == problem.target)


def test_equal_margins_are_accepted_and_nan_is_not():
    problem = pose(linear((1, 8, 8)), (1, 8, 8), "linf")
    attack = Square(queries=20)
    flat = torch.zeros(5, 3)
    problem = replace(problem, y=torch.zeros(5, dtype=torch.int64))
    state = attack.tell(attack.init(problem), Answer(flat, flat[:, 0], flat))
    proposed = state.points
    state = attack.tell(state, Answer(flat, flat[:, 0], flat))
    assert torch.equal(state.best, proposed)
    bad = torch.full((5, 3), torch.nan)
    after = attack.tell(state, Answer(bad, bad[:, 0], bad))
    assert torch.equal(after.best, state.best)
    assert torch.equal(after.best_margin, state.best_margin)


@pytest.mark.parametrize(
    "options", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}, {"restarts": 0}]
)
def test_options_are_checked(options):
    with pytest.raises(PlanError, match=next(iter(options))):
        Square(**options)


def test_through_the_engine():
    shape = (1, 8, 8)
    model = linear(shape)
    problem = pose(model, shape, "linf", n=12)
    x_adv = Square(queries=100)(model, problem.x, problem.y, "linf:0.1")
    assert problem.allowed.contains(x_adv).all()
    again = Square(queries=100)(model, problem.x, problem.y, "linf:0.1", batch_size=5)
    assert torch.equal(x_adv, again)


def read_idx(path, header, shape):
    return torch.tensor(
        np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
    ).reshape(shape)


@pytest.mark.slow
def test_reaches_the_papers_strength_on_a_robust_model(data):
    """MNIST at linf 0.3: 1,000 queries break 26 of the first 200 images, PGD-20 about 23."""
    weights = data / "models" / "fast_adversarial" / "mnist_fgsm.pth"
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()
    )
    model = nn.Sequential(*model, nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    images = next((data / "mnist").glob("t10k-images*"))
    labels = next((data / "mnist").glob("t10k-labels*"))
    x = read_idx(images, 16, (-1, 1, 28, 28))[:200].float() / 255
    y = read_idx(labels, 8, (-1,))[:200].long()
    x_adv = Square(queries=1000)(model, x, y, "linf:0.3")
    with torch.no_grad():
        n_right = int((model(x_adv).argmax(1) == y).sum())
    assert n_right <= 178
