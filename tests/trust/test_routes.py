"""Other ways to gradients, against closed forms: what they average, what they cost."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast._running import cut
from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Objective, Query
from holdfast.engine.preflight import preflight
from holdfast.model import Model
from holdfast.trust.routes.expectation import Expectation
from holdfast.trust.routes.neighbours import Neighbours
from holdfast.trust.routes.straight_through import StraightThrough

N = 8
X = 0.2 + 0.6 * torch.rand(N, 3, generator=torch.Generator().manual_seed(5))
Y = torch.zeros(N, dtype=torch.int64)


class Heard(nn.Module):
    """Remembers the points it is asked about."""

    def __init__(self, rise):
        super().__init__()
        self.rise, self.points = rise, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        z = self.rise(x)
        return torch.stack([torch.zeros_like(z), z], 1)


@contextmanager
def asked(rise, is_random=False):
    """A session with a model of two classes whose margin is ``rise``, and a query at X."""
    net = Heard(rise)
    model = Model.wrap(net)
    with torch.random.fork_rng(devices=[]), model.session():
        torch.manual_seed(0)
        preflight(model, X, Y, Y)
        assert model.is_random is is_random
        net.points.clear()
        yield model, net, Query(X, Objective(goal_margin, (Y, torch.full_like(Y, -1))))


def squares(x):
    return x.square().sum(1)


def noisy(x):
    return (x * (1 + torch.randn(len(x), 1))).sum(1)


@pytest.mark.parametrize("draws", [1, 4, 64])
def test_an_expectation_asks_as_often_as_it_says(draws):
    with asked(noisy, is_random=True) as (model, net, query):
        usual, before = model.draws, model.passes.forward
        (answer,) = Expectation(draws=draws).answers(model, [query])
        assert model.draws == usual
        assert sum(len(points) for points in net.points) == draws * N
        assert model.passes.forward - before == draws * N
        assert Expectation(draws=draws).cost(usual, 1) == (draws, draws)
        if draws == 64:
            assert ((answer.gradients - 1).abs() < 4 / 64**0.5).all()
            assert answer.gradients.std() > 0  # of random answers
            error = (answer.losses / X.sum(1) - 1).abs()
            assert (error < 4 / 64**0.5).all()  # the mean loss, not that of the last answer
            assert torch.allclose(answer.logits[:, 1], answer.losses)


def test_neighbours_stand_in_pairs_on_opposite_sides():
    """Only then is the mean gradient of a square exactly its gradient."""
    with asked(squares) as (model, _, query):
        (answer,) = Neighbours(draws=4, size=0.1).answers(model, [query])
        assert torch.allclose(answer.gradients, 2 * X, atol=1e-6)
        assert torch.allclose(answer.logits[:, 1], squares(X), atol=1e-6)
        assert (answer.losses > squares(X) + 1e-4).all()  # of the neighbours, not of the point


def test_neighbours_smooth_what_is_rough():
    def rippled(x):
        return x.sum(1) + 0.01 * torch.sin(500 * x).sum(1)

    with asked(rippled) as (model, _, query):
        (own,) = model.averaged([query], 1)
        (answer,) = Neighbours(draws=64, size=0.1).answers(model, [query])
        assert (own.gradients - 1).abs().mean() > 2
        assert (answer.gradients - 1).abs().mean() < 0.7


def test_neighbours_are_near_inside_and_hang_on_the_point_alone():
    with asked(squares) as (model, net, query):
        Neighbours(draws=6, size=0.3).answers(model, [query])
        near = [points for points in net.points if not torch.equal(points, X)]
        assert len(near) == 6
        moved = torch.stack(near)
        assert ((moved - X).abs() <= 0.3 + 1e-6).all()
        assert ((moved >= 0) & (moved <= 1)).all()
        assert len(moved.flatten(0, 1).unique(dim=0)) == 6 * N
        net.points.clear()
        alone = Query(X[3:4], Objective(goal_margin, (Y[3:4], torch.full_like(Y[3:4], -1))))
        Neighbours(draws=6, size=0.3).answers(model, [alone])
        again = [p[0] for p in net.points if not torch.equal(p[0], X[3])]
        assert torch.equal(torch.stack(again), moved[:, 3])


def test_neighbours_cost_what_they_say():
    with asked(squares) as (model, _, query):
        before = model.passes.forward, model.passes.backward
        Neighbours(draws=6).answers(model, [query])
        forward, backward = Neighbours(draws=6).cost(1, 1)
        assert model.passes.forward - before[0] == forward * N
        assert model.passes.backward - before[1] == backward * N


def rounded(x):
    return torch.round(3 * x).sum(1)


def test_stand_ins_grow_narrower_with_each_rows_own_progress():
    def through(width, narrowing=1.0):
        return StraightThrough(("round",), width, narrowing)

    done = torch.arange(N) % 2 * 1.0
    with asked(rounded) as (model, _, query):
        wide, narrow = (model.answer([replace(query, route=through(w))])[0] for w in (0.5, 0.05))
        plain = replace(query, route=through(0.5, 10.0))
        told = replace(plain, progress=done)
        whole, still = (model.answer([q])[0].gradients for q in (told, plain))
        pieces = [model.answer([cut(told, i, i + 3)])[0].gradients for i in (0, 3, 6)]
    is_done = done.bool()[:, None]
    assert float((wide.gradients - narrow.gradients).abs().min(1).values.max()) > 0.1
    torch.testing.assert_close(whole, torch.where(is_done, narrow.gradients, wide.gradients))
    torch.testing.assert_close(torch.cat(pieces), whole)
    assert torch.equal(still, wide.gradients)
