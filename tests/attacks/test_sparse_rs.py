"""Sparse-RS: its sets of places, its schedule, its values, and what it finds."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast import Model
from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.sparse_rs import SparseRS
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


def linear(m, k=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(m, k))


def pose(model, shape, eps, n=6, domain=None, x=None):
    rng = Rng.from_seed(0, n)
    domain = domain or Domain()
    x = domain.lower + rng.fold(1).uniform(shape) * domain.width if x is None else x
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    allowed = Ball("l0", eps).bind(x, domain)
    return Problem(x, y, torch.full_like(y, -1), allowed, rng, logits)


def heard(model, state):
    with torch.no_grad():
        logits = model(state.points)
    return Answer(logits, logits[:, 0], logits)


def changed(points, x):
    return (points != x).flatten(1)


def swaps(attack, eps, n_steps):
    """How many places every step swaps, for answers that always accept."""
    problem = pose(linear(900), (1, 30, 30), eps)
    state, counts = attack.init(problem), []
    flat = torch.zeros(6, 4)
    for _ in range(n_steps):
        state = attack.tell(state, Answer(flat, flat[:, 0], flat))
        left = state.places & ~state.proposed
        came = state.proposed & ~state.places
        assert torch.equal(left.sum(1), came.sum(1))
        assert torch.equal(changed(state.points, problem.x), state.proposed)
        counts.append(int(left.sum(1)[0]))
        assert (left.sum(1) == counts[-1]).all()
    return counts


def test_every_point_changes_eps_places_to_the_ends_of_the_domain():
    for domain in (Domain(), Domain(-1, 1), Domain(0, 255)):
        model = linear(48)
        problem = pose(model, (3, 4, 4), 7, domain=domain)
        attack = SparseRS(queries=40)
        state = attack.init(problem)
        for _ in range(40):
            mask = changed(state.points, problem.x)
            assert (mask.sum(1) == 7).all()
            values = state.points.flatten(1)[mask]
            assert ((values == domain.lower) | (values == domain.upper)).all()
            state = attack.tell(state, heard(model, state))
        assert state.finished.all()


def test_no_place_is_spent_on_the_clean_value():
    x = (Rng.from_seed(3, 6).uniform((1, 6, 6)) > 0.5).float()
    model = linear(36)
    problem = pose(model, (1, 6, 6), 9, x=x)
    state = SparseRS().init(problem)
    for _ in range(30):
        assert (changed(state.points, x).sum(1) == 9).all()
        state = SparseRS().tell(state, heard(model, state))


def test_values_and_places_are_random():
    problem = pose(linear(900), (1, 30, 30), 90, n=40)
    points = SparseRS().init(problem).points
    mask = changed(points, problem.x)
    up = points.flatten(1)[mask].mean()
    assert 0.45 < up < 0.55
    assert mask.float().mean(0).max() < 0.4  # no place in every row
    assert len({tuple(row.nonzero()[:, 0].tolist()) for row in mask}) == 40


def test_swaps_follow_the_published_schedule():
    """0.3 of the places, divided by 2 to 20 as the queries of 10,000 go by."""
    attack = SparseRS(queries=10_000)
    assert swaps(attack, 400, 210) == [60] * 50 + [30] * 150 + [24] * 10
    short = swaps(SparseRS(queries=100), 400, 99)
    assert short[:3] == [30, 30, 24]  # query 1 of 100 is query 100 of 10,000
    assert short[9:11] == [20, 15]
    assert short[-1] == 6
    assert swaps(SparseRS(queries=50), 3, 10) == [1] * 10


def test_a_set_of_all_places_still_moves():
    problem = pose(linear(5), (5,), 5)
    model, attack = linear(5), SparseRS(queries=200)
    state = attack.init(problem)
    seen = set()
    for _ in range(200):
        assert (changed(state.points, problem.x).sum(1) == 5).all()
        seen.add(tuple(state.points[0].tolist()))
        state = attack.tell(state, heard(model, state))
    assert len(seen) > 4


@pytest.mark.parametrize("eps", [0, 9])
def test_any_size(eps):
    x_adv = SparseRS(queries=10)(linear(9), torch.rand(3, 9), torch.zeros(3).long(), f"l0:{eps}")
    assert x_adv.shape == (3, 9)


def test_radii_may_differ_by_row():
    model = linear(30)
    eps = torch.tensor([0.0, 1.0, 5.0, 12.0, 29.0, 99.0])
    problem = pose(model, (30,), eps)
    state = SparseRS().init(problem)
    for _ in range(20):
        assert changed(state.points, problem.x).sum(1).tolist() == [0, 1, 5, 12, 29, 30]
        state = SparseRS().tell(state, heard(model, state))


def test_equal_margins_are_accepted_and_nan_is_not():
    problem = pose(linear(16), (16,), 3)
    problem = replace(problem, y=torch.zeros(6, dtype=torch.int64))
    attack, flat = SparseRS(queries=20), torch.zeros(6, 3)
    state = attack.tell(attack.init(problem), Answer(flat, flat[:, 0], flat))
    proposed = state.points
    state = attack.tell(state, Answer(flat, flat[:, 0], flat))
    assert torch.equal(state.best, proposed)
    bad = torch.full((6, 3), torch.nan)
    after = attack.tell(state, Answer(bad, bad[:, 0], bad))
    assert torch.equal(after.best, state.best)
    assert torch.equal(after.best_margin, state.best_margin)


@pytest.mark.parametrize("target", [None, 2])
def test_finds_the_best_places_of_a_linear_model(target):
    """The margin rises nearly as far as with the coordinates of largest gain."""
    model = linear(40, k=2 if target is None else 4, seed=5)
    problem = pose(model, (40,), 4)
    aim = problem.target if target is None else torch.full_like(problem.y, target)
    problem = replace(problem, target=aim)
    attack = SparseRS(queries=1500)
    state = attack.init(problem)
    while not bool(state.finished.all()):
        state = attack.tell(state, heard(model, state))
    logits = model(state.best).detach()
    assert torch.allclose(goal_margin(logits, problem.y, aim), state.best_margin, atol=1e-6)
    if target is None:
        weight = model[1].weight.detach()
        slope = weight[1 - problem.y] - weight[problem.y]
        gain = torch.where(slope > 0, slope * (1 - problem.x), -slope * problem.x)
        best = gain.topk(4, dim=1).values.sum(1)
        found = state.best_margin - goal_margin(problem.logits, problem.y, aim)
        assert (found / best).mean() > 0.97
    else:
        before = goal_margin(problem.logits, problem.y, aim)
        assert (state.best_margin[problem.y != target] > before[problem.y != target]).all()


def test_scores_are_enough():
    net = linear(30)

    @torch.no_grad()
    def scores(x):
        return net(x.detach()).softmax(1)

    x = Rng.from_seed(1, 10).uniform((30,))
    y = net(x).argmax(1)
    x_adv = SparseRS(queries=300)(Model(scores), x, y, "l0:8")
    assert (net(x_adv).argmax(1) != y).float().mean() > 0.5


@pytest.mark.parametrize(
    "options", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}, {"restarts": 0}]
)
def test_options_are_checked(options):
    with pytest.raises(PlanError, match=next(iter(options))):
        SparseRS(**options)
