"""Pointwise: few changed coordinates, with labels alone."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.pointwise import DENSITIES, Pointwise
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


class Needs(nn.Module):
    """Class 1 where at least three of the coordinates that matter are above 0.9."""

    def __init__(self, m: int, important: list[int], count: int = 3) -> None:
        super().__init__()
        self.important, self.count, self.m = important, count, m

    def forward(self, x):
        n_up = (x.flatten(1)[:, self.important] > 0.9).sum(1)
        return torch.stack([torch.full_like(n_up, self.count) - 0.5, n_up], 1).float()


def pose(model, x, eps=3.0):
    y = torch.zeros(len(x), dtype=torch.int64)
    allowed = Ball("l0", eps).bind(x, Domain())
    rng = Rng.from_seed(0, len(x))
    return Problem(x, y, torch.full_like(y, -1), allowed, rng, model(x))


def driven(model, problem, queries):
    """All points asked and whether they fooled."""
    attack, found = Pointwise(queries=queries), []
    state = attack.init(problem)
    while not bool(state.finished.all()):
        points = attack.ask(state).points
        logits = model(points)
        found.append((points, logits.argmax(1) != problem.y, state))
        state = attack.tell(state, Answer(logits, logits[:, 0], logits))
    return found


def n_changed(points, x):
    return (points != x).flatten(1).sum(1)


def test_only_what_is_needed_stays_changed():
    model = Needs(100, [3, 17, 40, 41, 77])
    x = Rng.from_seed(2, 8).uniform((1, 10, 10)) * 0.8
    found = driven(model, pose(model, x), 400)
    least = torch.stack([torch.where(f, n_changed(p, x), 999) for p, f, _ in found]).amin(0)
    assert (least == 3).all()


def test_tens_of_queries_are_enough_where_few_coordinates_matter():
    """One query per coordinate would take 400 and more."""
    model = Needs(400, [5, 100, 201, 333])
    x = torch.full((8, 400), 0.5)
    found = driven(model, pose(model, x), 150)
    least = torch.stack([torch.where(f, n_changed(p, x), 999) for p, f, _ in found]).amin(0)
    assert (least == 3).float().mean() >= 0.75


def test_a_descent_never_adds_a_change_and_ends_where_nothing_can_go_back():
    model = Needs(60, [1, 2, 3, 4, 5, 6])
    x = torch.full((4, 60), 0.5)
    found = driven(model, pose(model, x), 300)
    ended = 0
    for (_, _, before), (_, _, after) in pairwise(found):
        both = before.has_x & after.has_x
        assert (n_changed(after.x, x)[both] <= n_changed(before.x, x)[both]).all()
        for row in (before.has_x & ~after.has_x).nonzero()[:, 0].tolist():
            ended += 1
            point = before.x[row : row + 1]
            for place in (point[0] != x[row]).nonzero()[:, 0].tolist():
                less = point.clone()
                less[0, place] = x[row, place]
                assert model(less).argmax(1).item() == 0
    assert ended > 4


def test_noise_grows_until_it_fools_and_never_repeats_the_clean_value():
    model = Needs(320, list(range(320)), count=400)  # nothing fools it
    x = (Rng.from_seed(4, 3).uniform((320,)) > 0.5).float()
    found = driven(model, pose(model, x), 2 * len(DENSITIES))
    expected = [max(1, int(share * 320)) for share in DENSITIES] * 2
    assert [n_changed(points, x).tolist() for points, _, _ in found] == [[n] * 3 for n in expected]


def test_labels_are_enough_and_the_radius_is_kept():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    x = Rng.from_seed(1, 20).uniform((40,))
    y = net(x).argmax(1)
    labels = holdfast.Model(lambda z: net(z).argmax(1), n_classes=3)
    x_adv = Pointwise(queries=600)(labels, x, y, "l0:12")
    assert (n_changed(x_adv, x) <= 12).all()
    assert (net(x_adv).argmax(1) != y).float().mean() > 0.6


def test_a_target_is_reached():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Linear(40, 4)
    x = Rng.from_seed(1, 20).uniform((40,))
    y = net(x).argmax(1)
    target = (y + 1) % 4
    x_adv = Pointwise(queries=600)(net, x, y, "l0:25", targets=target)
    assert (net(x_adv).argmax(1) == target).float().mean() > 0.5


def test_refuses_no_queries():
    with pytest.raises(PlanError, match="queries is 0"):
        Pointwise(queries=0)
