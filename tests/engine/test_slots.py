"""Slots with an attack that asks what it is told to: claims, refusals and passes are counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import pytest
import torch
from torch import Tensor

import holdfast
from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Attack, Card, Objective, Problem, Query
from holdfast.engine.jobs import Job
from holdfast.engine.random import Rng
from holdfast.engine.slots import Rules, Slots
from holdfast.engine.tally import fresh, is_due, refuse, watched
from holdfast.model import Model
from holdfast.record import Outcome
from holdfast.threat import Access, Domain


@dataclass(frozen=True, slots=True)
class State:
    x: Tensor
    y: Tensor
    step: Tensor
    finished: Tensor


@final
@dataclass(frozen=True, slots=True)
class Scripted(Attack):
    """Asks about x, moved by one number after the other."""

    card: ClassVar[Card] = Card("scripted", "asks what it is told to", "none", Access.GRADIENTS)

    moves: tuple[float, ...] = (0.0,)
    stays_inside: bool = True

    @property
    def max_queries(self) -> int:
        return len(self.moves)

    def init(self, problem: Problem) -> State:
        none = torch.zeros_like(problem.y)
        return State(problem.x, problem.y, none, none > 0)

    def ask(self, state: State) -> Query:
        moves = torch.tensor(self.moves)[state.step]
        goal = torch.full_like(state.y, -1)
        return Query(state.x + moves[:, None], Objective(goal_margin, (state.y, goal)))

    def tell(self, state: State, answer: Answer) -> State:
        step = state.step + 1
        return replace(
            state, step=step.clamp_max(len(self.moves) - 1), finished=step >= len(self.moves)
        )


def above_half(x: Tensor) -> Tensor:
    return torch.stack([5 - 10 * x[:, 0], 10 * x[:, 0] - 5], 1)


def together_only(x: Tensor) -> Tensor:
    """Fooled above a half, but never where a sample is alone."""
    return above_half(x) - (torch.tensor([0.0, 100.0]) if len(x) == 1 else 0.0)


def ended(classifier, attack: Attack, opening: Tensor | None = None, n: int = 2):
    """What became of n jobs at 0.45, where nothing is fooled."""
    model = Model(classifier, head="logits")
    x = torch.full((n, 1), 0.45)
    y, goal = torch.zeros(n, dtype=torch.int64), torch.full((n,), -1)
    with model.session():
        model.recognise(x)
        allowed = holdfast.parse_threat("linf:0.3").bind(x, model.domain)
        rng = Rng.from_seed(0, n, model.device)
        problem = Problem(x, y, goal, allowed, rng, classifier(x), opening=opening)
        slots = Slots(model, n, Rules())
        slots.add(attack, [Job(i, 0) for i in range(n)], problem, goal)
        found = []
        while not slots.is_empty:
            found += slots.tick()
    return sorted(found, key=lambda one: one.job.sample)


def test_a_refused_claim_is_counted_and_only_a_larger_one_is_tried_again():
    for one in ended(together_only, Scripted((0.15, 0.1, 0.25, 0.2))):
        assert one.outcome is Outcome.SURVIVED
        assert one.rejected == 2
        assert (one.forward, one.backward) == (4 + 2, 4)


def claims_on_a_random_model(wins: list[bool]) -> list[int]:
    """The queries after which a claim is made that is always refused."""
    x, y = torch.full((1, 1), 0.45), torch.zeros(1, dtype=torch.int64)
    allowed = holdfast.parse_threat("linf:0.3").bind(x, Domain())
    problem = Problem(x, y, y - 1, allowed, Rng.from_seed(0), torch.zeros(1, 2))
    tally, claims = fresh([Job(0, 0)], problem, y - 1, False), []
    for query, win in enumerate(wins, 1):
        answer = Answer(torch.tensor([[0.0, 2.0 * win - 1.0]]), torch.zeros(1), torch.zeros(1))
        tally = watched(replace(tally, queries=tally.queries + 1), answer)
        if bool(is_due(tally, len(wins))):
            claims.append(query)
            refuse(tally, torch.tensor([0]), torch.zeros(1))
    return claims


def test_claims_on_a_random_model_wait_twice_as_long_after_every_refusal():
    assert claims_on_a_random_model([True] * 60) == [1, 9, 25, 57, 60]


def test_a_random_model_that_is_rarely_fooled_is_left_alone():
    assert claims_on_a_random_model([False] * 3 + [False, False, True] * 12) == []


def test_an_accepted_claim_ends_its_job_and_pays_for_its_replay():
    for one in ended(above_half, Scripted((0.0, 0.15, 0.25))):
        assert one.outcome is Outcome.BROKEN
        assert one.rejected == 0
        assert (one.forward, one.backward) == (2 + 1, 2)


def test_points_outside_the_set_are_no_claims():
    for one in ended(above_half, Scripted((0.4, 0.5), stays_inside=False)):
        assert one.outcome is Outcome.SURVIVED
        assert one.rejected == 0
        assert (one.forward, one.backward) == (2, 2)


@pytest.mark.parametrize("known", [(True, True), (True, False)])
def test_jobs_that_end_with_their_first_gradient_are_given_back(known):
    opening = torch.tensor(known, dtype=torch.float32)[:, None]
    found = ended(above_half, Scripted((0.0,)), opening)
    assert [one.job.sample for one in found] == [0, 1]
    assert [one.forward for one in found] == [int(not k) for k in known]
    assert [one.backward for one in found] == [1, 1]
