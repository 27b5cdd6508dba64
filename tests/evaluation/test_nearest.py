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
from holdfast.evaluation._ranking import CHECKING
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


@pytest.mark.parametrize("excess", [1.0005, 1.003, 1.02, 1.3, 2.4])
def test_polish_comes_close_from_near_and_far(excess):
    with ranked_search(Twofold(10, 0), "l2", FAB(steps=1, n_targets=1), 60) as (search, _):
        point = search.x.clone()
        point[:, 0] += 0.2 * excess  # class 1 begins at 0.2
        search.distance[:] = 0.2 * excess
        search.x_adv = point
        polish(search, 8)
        beyond = search.distance / 0.2 - 1
        assert (beyond >= 0).all()
        assert (beyond <= (1e-4 if excess < 1.01 else 0.02)).all()


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


class Bent(nn.Module):
    """By its gradient class 2 is near; it turns away at once. Class 1 is farther, and likeliest."""

    def forward(self, x):
        z = x.flatten(1) - 0.5
        bent = 10 * z[:, 0].clamp(max=0.01) - 100 * (z[:, 0] - 0.01).clamp(min=0)
        return torch.stack([0 * z[:, 0], 2 * z[:, 1] - 0.5, bent - 1], 1)


class Fading(nn.Module):
    """Gradients say 0.1 of class 2, its secant 0.33; it is never reached. Class 1 is at 0.475."""

    def forward(self, x):
        z = x.flatten(1) - 0.5
        return torch.stack([0 * z[:, 0], 2 * z[:, 1] - 0.95, 10 * z[:, 0].clamp(max=0.03) - 1], 1)


class Curved(nn.Module):
    """Gradients say 0.15 of class 2, its secant 0.25; they say 0.2 of class 1, its secant 0.04."""

    def forward(self, x):
        z = x.flatten(1) - 0.5
        slower = 10 * z[:, 0].clamp(max=0.05) + 4 * (z[:, 0] - 0.05).clamp(min=0)
        faster = 2 * z[:, 1] + 40 * z[:, 1].clamp(min=0) ** 2
        return torch.stack([0 * z[:, 0], faster - 0.4, slower - 1.5], 1)


CLASSES_GONE_FOR = {  # the net, and how far its nearest class is
    "the nearest, not the likeliest": (Lopsided(), 0.1),
    "none whose gradient proves wrong": (Bent(), 0.25),
    "none whose secant is believed though little of the gap was closed": (Fading(), 0.475),
    "none whose secant is longer than the likeliest one's": (Curved(), 0.0781),
}


@pytest.mark.parametrize(("net", "reach"), CLASSES_GONE_FOR.values(), ids=CLASSES_GONE_FOR)
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_of_the_classes_that_are_gone_for(norm, net, reach):
    with ranked_search(net, norm, FAB(steps=10, n_targets=1), 60) as (search, counting):
        assert torch.allclose(search.distance, torch.full((N,), reach).double(), rtol=0.06)
        assert int(search.forward.sum()) == counting.forward_rows
        assert int(search.backward.sum()) == counting.backward_rows


def test_ranking_classes_is_paid_from_the_passes_of_the_attack():
    attack = ShrinkingBall(steps=100, n_targets=1)
    with ranked_search(Lopsided(), "linf", attack, 60) as (search, _):
        passes = search.forward + search.backward
        assert (passes <= 60).all()
        assert (passes >= 57).all()  # the limit is what ended the attack


class Twofold(nn.Module):
    """Class 1 is at 0.2 by its gradient, or farther if ``slower``; class 2 is less likely."""

    def __init__(self, slope, faster, slower=0.0):
        super().__init__()
        self.slope, self.faster, self.slower = slope, faster, slower

    def forward(self, x):
        z = x.flatten(1) - 0.5
        first = 2.5 * z[:, 0] - self.slower * (z[:, 0] - 0.12).clamp(min=0)
        second = self.slope * z[:, 1] + self.faster * (z[:, 1] - 0.05).clamp(min=0)
        return torch.stack([0 * z[:, 0], first - 0.5, second - 1.2], 1)


LED = {  # the net, and whether its samples go for class 2
    "another class seems near: at 0.14, and is at 0.15": (Twofold(5, 4.5), True),
    "another class seems too far: at 0.3": (Twofold(4, 0), False),
    "the first class was at 0.32 instead of 0.26": (Twofold(5, 4.5, slower=1.5), False),
}


@pytest.mark.parametrize(("net", "is_led"), LED.values(), ids=LED)
def test_who_goes_for_another_class_and_who_begins_far_away(net, is_led):
    with ranked_search(net, "l1", FAB(steps=10, n_targets=1), 60) as (search, counting):
        first = search.distance.clone()
        assert (search.is_led == is_led).all()
        counting.asked = []
        search.attack_spare(FAB(steps=10, is_thrifty=True), 1, 40, N)
        assert bool(counting.asked) == is_led
        assert (search.found_by == int(is_led)).all()
        assert (search.distance < 0.8 * first).all() == is_led
        counting.asked = []
        search.approach(ShrinkingBall(steps=5), 2, 40, N)
        assert bool(counting.asked) != is_led
        assert int(search.forward.sum()) == counting.forward_rows
        assert int(search.backward.sum()) == counting.backward_rows


LOOKED = {  # the net, whether its samples go for class 2, and whether they are sure
    "class 2 is nearer by its gradient: at 0.12": (Twofold(10, 0), True, False),
    "class 2 is farther: at 0.24": (Twofold(5, 0), False, True),
    "the first class was at 0.32 instead of 0.2": (Twofold(10, 0, slower=1.5), False, False),
}


@pytest.mark.parametrize(("net", "is_led", "is_sure"), LOOKED.values(), ids=LOOKED)
def test_in_l2_gradients_are_asked_once_a_boundary_is_known(net, is_led, is_sure):
    with ranked_search(net, "l2", FAB(steps=10, n_targets=1), 60) as (search, counting):
        before = search.forward + search.backward
        search.look(1, N)
        spent = search.forward + search.backward - before
        assert (search.is_led == is_led).all()
        assert (search.is_sure == is_sure).all()
        assert spent.tolist() == [CHECKING + (is_led or is_sure) * 2] * N  # one class is left
        turns = (search.approach, search.approach_sure, search.approach_led)
        began = []
        for number, turn in enumerate(turns):
            counting.asked = []
            turn(ShrinkingBall(steps=2), 1 + number, 40, N)
            began.append(bool(counting.asked))
        assert began == [not is_led and not is_sure, is_sure, is_led]
        search.attack_spare(FAB(steps=10, is_thrifty=True), 4, 40, N)
        near = torch.full((N,), 0.12).double()
        assert torch.allclose(search.distance, near, rtol=0.06) == is_led
        assert int(search.forward.sum()) == counting.forward_rows
        assert int(search.backward.sum()) == counting.backward_rows


def test_a_search_for_one_class_asks_for_no_other():
    with ranked_search(Twofold(10, 0), "l2", FAB(steps=10, n_targets=1), 60) as (search, _):
        search.goal[:] = 1
        search.look(1, N)
        assert not search.is_led.any()
        assert not search.is_sure.any()


@contextmanager
def ranked_search(net, norm, attack, max_passes):
    """A search in which an attack has looked at one class of each sample, and its model."""
    counting, x = Counting(net), torch.full((N, 4), 0.5)
    y, model = torch.zeros(N, dtype=torch.long), Model.wrap(counting)
    with model.session():
        preflight(model, x, y, y)
        search = Search(model, x, y, torch.full_like(y, -1), norm, Rng.from_seed(0, N))
        counting.forward_rows, counting.backward_rows = 0, 0
        search.attack(attack, 0, max_passes, N)
        yield search, counting
