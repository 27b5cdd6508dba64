"""Random search first, gradients from where it came."""

from __future__ import annotations

import torch
from torch import nn

from holdfast import PGD
from holdfast.attacks.square_pgd import CLIMB, LOOK, SEARCH, SquarePGD
from holdfast.contracts import drive, pose
from holdfast.contracts._toys import Flat, inputs
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
    assert attack.max_queries == 7


def test_it_says_that_it_searches_without_gradients():
    assert SquarePGD.card.is_blind
    assert not PGD.card.is_blind
