"""The search behind smallest changes: what counts, what it costs, where attacks go on from."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from holdfast.attacks.deepfool import DeepFool
from holdfast.attacks.fab import FAB
from holdfast.attacks.shrinking_ball import ShrinkingBall
from holdfast.attacks.sigma_zero import SigmaZero
from holdfast.contracts._toys import Net, inputs
from holdfast.engine.preflight import preflight
from holdfast.engine.random import Rng
from holdfast.evaluation import _counted
from holdfast.evaluation._counted import ROUNDS, thin
from holdfast.evaluation._nearest import NOBODY, Search, polish
from holdfast.model import Model

N = 8  # rows: other numbers are padded in calls, and padding is nobody's pass


class Counting(nn.Module):
    """Counts forward and backward passes of rows, and keeps what it was asked."""

    def __init__(self, net):
        super().__init__()
        self.net, self.forward_rows, self.backward_rows, self.asked = net, 0, 0, []

    def forward(self, x):
        self.forward_rows += len(x)
        self.asked.append(x.detach().clone())
        z = self.net(x)
        if z.requires_grad:
            z.register_hook(self.count)
        return z

    def count(self, gradient):
        self.backward_rows += len(gradient)


@contextmanager
def searching(norm="l2"):
    """A search over samples that are all answered rightly, and its model."""
    net, x = Net(8, 4, seed=80), inputs(81, N)
    with torch.no_grad():
        y = net(x).argmax(1)
    counting = Counting(net)
    model = Model.wrap(counting)
    with model.session():
        preflight(model, x, y, y)
        search = Search(model, x, y, torch.full_like(y, -1), norm, Rng.from_seed(0, N))
        counting.forward_rows, counting.backward_rows, counting.asked = 0, 0, []
        yield search, counting


FIRST = {"l2": DeepFool(overshoot=0.5), "l0": SigmaZero(steps=20, threshold=0.0)}


@pytest.mark.parametrize("norm", FIRST)
@pytest.mark.parametrize("stage", ["attack", "refine", "polish", "thin"])
def test_passes_are_those_that_the_model_ran(norm, stage):
    if (norm, stage) in {("l2", "thin"), ("l0", "refine"), ("l0", "polish")}:
        return
    with searching(norm) as (search, counting):
        search.attack(FIRST[norm], 0, 200, N)
        assert search.distance.isfinite().all()
        if stage == "refine":
            search.refine(ShrinkingBall(steps=10), 1, 60, N)
        if stage == "polish":
            polish(search, 4)
        if stage == "thin":
            assert (search.distance > 1).any()
            thin(search, len(ROUNDS))
        assert int(search.forward.sum()) == counting.forward_rows
        assert int(search.backward.sum()) == counting.backward_rows


def test_only_what_fools_inside_the_domain_is_kept():
    with searching() as (search, _):
        rows = torch.arange(N)
        honest = search.x + 1e-3 * (0.5 - search.x)  # near, but fools nobody
        assert not search.offer(rows, honest, 3).any()
        outside = search.x - 100.0
        with torch.no_grad():
            fools = search.model.logits(outside).argmax(1) != search.y
        assert fools.any()
        assert not search.offer(rows, outside, 3).any()
        assert search.distance.isinf().all()
        assert (search.found_by == NOBODY).all()
        search.attack(FIRST["l2"], 0, 200, N)
        before, points = search.distance.clone(), search.x_adv.clone()
        farther = search.x + 1.01 * (search.x_adv - search.x)
        search.offer(rows, farther, 3)
        assert torch.equal(search.distance, before)
        assert torch.equal(search.x_adv, points)


@pytest.mark.parametrize("attack", [ShrinkingBall(steps=10), FAB(steps=10)])
def test_an_attack_goes_on_from_the_nearest_input_known(attack):
    with searching() as (search, counting):
        search.attack(FIRST["l2"], 0, 200, N)
        before, points = search.distance.clone(), search.x_adv.clone()
        counting.asked = []
        search.refine(attack, 1, 60, N)
        assert torch.equal(counting.asked[1].sort(0).values, points.sort(0).values)
        assert (search.distance < before).all()
        assert (search.found_by == 1).all()


def test_going_on_aims_at_the_class_that_was_reached(monkeypatch):
    seen, begin = [], ShrinkingBall.init
    monkeypatch.setattr(ShrinkingBall, "init", lambda self, p: seen.append(p) or begin(self, p))
    with searching() as (search, _):
        search.attack(FIRST["l2"], 0, 200, N)
        with torch.no_grad():
            reached = search.model.logits(search.x_adv).argmax(1)
        search.refine(ShrinkingBall(steps=10), 1, 60, N)
        (problem,) = seen
        assert torch.equal(problem.target, reached)
        assert (problem.allowed.radius < search.allowed.radius).all()


def test_where_nothing_is_known_going_on_begins_at_x():
    with searching() as (search, counting):
        search.refine(ShrinkingBall(steps=30), 1, 100, N)
        assert torch.equal(counting.asked[1].sort(0).values, search.x.sort(0).values)
        assert search.distance.isfinite().sum() >= N - 1


def test_a_start_far_away_begins_at_random_inputs_of_the_domain():
    with searching("l0") as (search, counting):
        search.approach(SigmaZero(steps=60, step_size=0.3), 1, 130, N)
        first = counting.asked[0]
        assert len(first.unique(dim=0)) == N
        assert ((first >= 0) & (first <= 1)).all()
        assert (first != search.x).all()
        assert search.distance.isfinite().all()


@pytest.mark.parametrize("way", range(len(ROUNDS)))
def test_fewer_coordinates_are_found_in_every_way(way, monkeypatch):
    monkeypatch.setattr(_counted, "ROUNDS", ROUNDS[way:])
    with searching("l0") as (search, _):
        search.x_adv = 1 - search.x.round()  # every coordinate is changed
        far = search.model.logits(search.x_adv).argmax(1) != search.y
        assert far.any()
        search.distance = torch.where(far, 8.0, torch.inf).double()
        thin(search, 1)
        assert (search.distance[far] < 8).any()
        changed = (search.x_adv != search.x).sum(1)[far]
        assert torch.equal(search.distance[far], changed.double())


class Lopsided(nn.Module):
    """Class 1 is likely and out of reach, class 2 unlikely and a tenth away."""

    def forward(self, x):
        z = x.flatten(1) - 0.5
        return torch.stack([0 * z[:, 0], 0.01 * z.sum(1) - 0.1, 10 * z[:, 0] - 1], 1)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_class_gone_for_is_the_nearest_not_the_likeliest(norm):
    counting, x = Counting(Lopsided()), torch.full((N, 4), 0.5)
    y, model = torch.zeros(N, dtype=torch.long), Model.wrap(counting)
    with model.session():
        preflight(model, x, y, y)
        search = Search(model, x, y, torch.full_like(y, -1), norm, Rng.from_seed(0, N))
        counting.forward_rows, counting.backward_rows = 0, 0
        search.attack(FAB(steps=10, n_targets=1), 0, 60, N)
    assert torch.allclose(search.distance, torch.full((N,), 0.1).double(), rtol=0.06)
    assert int(search.forward.sum()) == counting.forward_rows
    assert int(search.backward.sum()) == counting.backward_rows
    assert (search.forward + search.backward <= 60).all()


class Bent(nn.Module):
    """By its gradient class 2 is near; it turns away at once. Class 1 is farther, and likeliest."""

    def forward(self, x):
        z = x.flatten(1) - 0.5
        bent = 10 * z[:, 0].clamp(max=0.01) - 100 * (z[:, 0] - 0.01).clamp(min=0)
        return torch.stack([0 * z[:, 0], 2 * z[:, 1] - 0.5, bent - 1], 1)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_gradient_that_proves_wrong_is_not_followed(norm):
    x = torch.full((N, 4), 0.5)
    y, model = torch.zeros(N, dtype=torch.long), Model.wrap(Bent())
    with model.session():
        preflight(model, x, y, y)
        search = Search(model, x, y, torch.full_like(y, -1), norm, Rng.from_seed(0, N))
        search.attack(FAB(steps=10, n_targets=1), 0, 60, N)
    assert torch.allclose(search.distance, torch.full((N,), 0.25).double(), rtol=0.06)
