"""Random search and gradients in turns, each from the best point so far."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import holdfast
from holdfast import PGD, Model
from holdfast.attacks.square_pgd import CLIMB, LOOK, SEARCH, SquarePGD
from holdfast.contracts import drive, pose
from holdfast.contracts._toys import Flat, Net, inputs
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball


class Moat(nn.Module):
    """The gradient at x leads away from the only side where class 1 wins."""

    def forward(self, x):
        u = x.flatten(1)[:, 0] - 0.5
        gain = -0.2 * u + 5 * (u - 0.05).clamp_min(0)
        return torch.stack([torch.full_like(gain, 0.1), gain], 1)


def test_it_finds_a_side_that_gradients_from_x_do_not_lead_to():
    x, y = torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.int64)
    steps = PGD(steps=20, random_start=False)(Moat(), x, y, "linf:0.11")
    hybrid = SquarePGD(queries=30, steps=5)(Moat(), x, y, "linf:0.11")
    assert not Moat()(steps).argmax(1).any()
    assert Moat()(hybrid).argmax(1).all()


def test_the_search_pays_no_gradient_and_the_last_point_neither():
    attack, x = SquarePGD(queries=4, steps=2), inputs(1, 1)
    problem = pose(Flat(0.0), x, torch.zeros(1, dtype=torch.int64), Ball("linf", 0.1))
    state, kinds = attack.init(problem), []

    def look(state, _):
        kinds.append(attack.phase(state).tolist())
        return state

    assert attack.phase(state).tolist() == [SEARCH]
    drive(attack, Flat(0.0), problem, handle=look)
    assert [kind for (kind,) in kinds] == [SEARCH] * 3 + [CLIMB] * 2 + [LOOK] * 2
    assert attack.max_queries == 8  # one for the look at a start that is handed over


def test_it_says_that_it_searches_without_gradients():
    assert SquarePGD.card.is_blind
    assert not PGD.card.is_blind


class Ramp(nn.Module):
    """Class 1 gains along the first pixel as fast as the attacker likes: ``height`` away at x."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        u = x.flatten(1)[:, 0] - 0.5
        return torch.stack([torch.full_like(u, self.height), u], 1) - 3  # no probabilities


def answered(net, query):
    model = Model(net)
    with model.session():
        model.recognise(query.points)
        return model.answer([query])[0]


def phases(attack, model, x, radius=0.1):
    """The phases of one job, one per query, and its last state."""
    y = torch.zeros(len(x), dtype=torch.int64)
    problem = pose(model, x, y, Ball("linf", radius))
    state, kinds = attack.init(problem), []
    while not bool(state.finished.all()) and len(kinds) < attack.max_queries:
        kinds.append(int(attack.phase(state)[0]))
        query = attack.ask(state)
        state = attack.tell(state, answered(model, query))
    return kinds, state


def test_the_search_begins_at_the_best_point_of_the_warm_up():
    attack = SquarePGD(warmup=3, queries=5, steps=2, effort=2.0)
    x = torch.full((1, 1, 4, 4), 0.5)
    kinds, state = phases(attack, Ramp(1.0), x)
    assert kinds == [0, 1, 1, 1, 2] + [SEARCH] * 5 + [CLIMB] * 2 + [LOOK]
    assert len(kinds) == attack.max_queries
    assert state.best.flatten()[0] == pytest.approx(0.6)
    assert state.best_margin.item() == pytest.approx(-0.9)


def test_the_warm_up_has_as_many_runs_as_the_margin_left_allows():
    # 0.9 of the margin is left after every run: run j wants j * 0.9 below the effort
    x = torch.full((1, 1, 4, 4), 0.5)
    for effort, n_runs in ((0.91, 2), (1.81, 3), (2.71, 4), (99.0, 4)):
        attack = SquarePGD(warmup=2, runs=4, queries=3, steps=2, effort=effort)
        kinds, state = phases(attack, Ramp(1.0), x)
        assert kinds == [0, *[1, 1, 2] * n_runs] + [SEARCH] * 3 + [CLIMB] * 2 + [LOOK]
        assert state.search.best_margin.item() == pytest.approx(-0.9)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, (7, 5, 4)),  # of 8 x 8, halved after 10 and 50 of 10,000 queries, squeezed into 1,000
        ({"squeeze": False}, (7, 7, 7)),
        ({"p_init": 0.25}, (4, 3, 2)),
    ],
)
def test_windows_begin_and_shrink_as_told(options, sides):
    attack, x = SquarePGD(queries=1000, **options), torch.full((1, 1, 8, 8), 0.5)
    problem = pose(Ramp(1.0), x, torch.zeros(1, dtype=torch.int64), Ball("linf", 0.1))
    windows = attack.init(problem).search.windows
    level = torch.bucketize(torch.tensor([0, 3, 7]), windows.halvings)
    assert windows.sides[level, 0].tolist() == list(sides)


def test_windows_of_no_size_are_refused():
    with pytest.raises(PlanError, match="p_init=0"):
        SquarePGD(p_init=0.0)


def test_where_much_is_left_after_the_warm_up_the_job_ends():
    x = torch.full((1, 1, 4, 4), 0.5)
    short, _ = phases(SquarePGD(warmup=3, queries=5, steps=2, effort=0.89), Ramp(1.0), x)
    long, _ = phases(SquarePGD(warmup=3, queries=5, steps=2, effort=0.91), Ramp(1.0), x)
    assert short == [0, 1, 1, 1, 2]
    assert len(long) > len(short)


def test_rounds_are_as_many_as_the_margin_left_allows():
    # 0.9 of the margin is left after every round: round j wants (j + 1) * 0.9 below the effort
    x = torch.full((1, 1, 4, 4), 0.5)
    for effort, n_rounds in ((0.91, 1), (1.81, 2), (2.71, 3), (99.0, 4)):
        attack = SquarePGD(warmup=1, queries=3, steps=2, rounds=4, effort=effort)
        kinds, state = phases(attack, Ramp(1.0), x)
        assert kinds.count(SEARCH) == 3 * n_rounds
        assert kinds.count(CLIMB) == 2 * n_rounds
        assert kinds.count(LOOK) == n_rounds
        assert state.round.item() == n_rounds


def test_a_round_that_gains_nothing_is_the_last():
    x = torch.full((1, 1, 4, 4), 0.5)
    attack = SquarePGD(warmup=1, queries=3, steps=1, rounds=4, effort=99.0, stall=0.99)
    kinds, _ = phases(attack, Ramp(1.0), x)
    assert kinds.count(LOOK) == 1


def test_a_search_goes_on_for_as_long_as_the_margin_left_is_worth_it():
    x = torch.full((1, 1, 4, 4), 0.5)
    for patience, n_queries in ((9.0, 20), (22.4, 25), (27.1, 31), (99.0, 60)):
        attack = SquarePGD(warmup=1, queries=60, steps=1, effort=99.0, patience=patience)
        kinds, _ = phases(attack, Ramp(1.0), x)
        assert kinds.count(SEARCH) == n_queries


class Peak(nn.Module):
    """Class 1 is likeliest at 0.53 in every feature; longer steps jump over it."""

    def forward(self, x):
        gain = -(x.flatten(1) - 0.53).abs().sum(1)
        return torch.stack([torch.ones_like(gain), gain], 1)


def margins(net, x):
    z = net(x)
    return z[:, 1:].amax(1) - z[:, 0]


def test_a_round_goes_on_from_the_best_point():
    attack = SquarePGD(queries=1, steps=3, first_step=1.5, rounds=2)
    net, x = Peak(), inputs(1, 12)
    state = attack.init(pose(net, x, torch.zeros(12, dtype=torch.int64), Ball("linf", 0.1)))
    best = torch.full((12,), -torch.inf)
    for _ in range(1 + 3 + 1):
        query = attack.ask(state)
        before, best = best, best.maximum(margins(net, query.points))
        state = attack.tell(state, answered(net, query))
    assert state.round.tolist() == [1] * 12
    assert bool((before == best).any())  # for some the last point was not the best
    torch.testing.assert_close(state.best_margin, best)
    torch.testing.assert_close(margins(net, state.best), best)
    assert torch.equal(state.search.best, state.best)
    assert torch.equal(state.search.best_margin, state.best_margin)


def test_steps_shorten_by_a_cosine():
    attack = SquarePGD(queries=1, steps=4, first_step=0.5)
    x = torch.full((1, 1, 4, 4), 0.5)
    state = attack.init(pose(Ramp(1.0), x, torch.zeros(1, dtype=torch.int64), Ball("linf", 0.1)))
    one = torch.ones_like(state.kind)
    for step, length in enumerate((0.05, 0.0427, 0.025, 0.0073)):
        now = replace(state, kind=one * CLIMB, x=x, step=one * step)
        moved = attack.tell(now, answered(Ramp(1.0), attack.ask(now)))
        assert (moved.x - x).flatten()[0].item() == pytest.approx(length, abs=1e-4)


def test_rows_do_not_know_of_each_other():
    attack = SquarePGD(warmup=2, queries=25, steps=2, rounds=3, effort=3.0, patience=18.0)
    net, x = Net(8, 3), inputs(3, 7)
    y = net(x).argmax(1)
    together = attack(net, x, y, "linf:0.05")
    alone = torch.cat([attack(net, x[i : i + 1], y[i : i + 1], "linf:0.05") for i in range(7)])
    assert torch.equal(together, alone)


def test_every_row_has_its_own_number_of_warm_up_runs():
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    x[:, 0, 0, 0] = torch.tensor([0.2, 0.5, 0.4, 0.3])  # 0.78, 0.33, 0.6, 0.71 left after a run
    stage = {"attack": "square_pgd", "warmup": 2, "runs": 5, "queries": 3, "steps": 1}
    options = {"cascade": [stage | {"effort": 0.99}], "trust": "off", "verify": "off"}
    passes = []
    for size in (1, 4):
        report = holdfast.audit(Ramp(0.15), (x, y), "linf:0.1", batch_size=size, **options)
        passes.append(list(report.threats["linf:0.1"].forward))
    assert passes[0] == passes[1]
    assert passes[0][1] - passes[0][0] == 3  # one run more


def test_a_start_takes_the_place_of_the_warm_up():
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    start = x + torch.tensor([0.05, *[0.0] * 15]).reshape(1, 1, 4, 4)
    attack = SquarePGD(warmup=3, queries=2, steps=1, effort=0.96)
    problem = replace(pose(Ramp(1.0), x, y, Ball("linf", 0.1)), start=start)
    state, kinds = attack.init(problem), []
    while not bool(state.finished.all()):
        kinds.append(int(attack.phase(state)[0]))
        query = attack.ask(state)
        if len(kinds) == 1:
            assert torch.equal(query.points, start)
        state = attack.tell(state, answered(Ramp(1.0), query))
        if len(kinds) == 1:
            assert torch.equal(state.best, start)
            assert state.search.best_margin.item() == pytest.approx(-0.95)
    assert kinds == [LOOK] + [SEARCH] * 2 + [CLIMB] + [LOOK]
    short = replace(attack, effort=0.94)  # 0.95 of the margin is left at the start
    state = short.init(problem)
    assert short.tell(state, answered(Ramp(1.0), short.ask(state))).finished.all()
    patient = replace(attack, stall=0.5)  # only a round can stall
    state = patient.init(problem)
    assert not patient.tell(state, answered(Ramp(1.0), patient.ask(state))).finished.any()
