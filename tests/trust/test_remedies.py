"""Which remedies are tried together, and which of them become stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast.trust import remedies
from holdfast.trust.base import Doubt
from holdfast.trust.remedies import Candidate, candidates, chosen

NOISE = ({"name": "neighbours", "draws": 8, "size": 0.1}, {"name": "annealed"})
WIDE = {"name": "straight_through", "operators": ["topk"], "width": 1.0}
NARROW = {**WIDE, "width": 0.015}
RESTARTS = {"name": "restarts"}


def doubts(*asked):
    return [("hard_steps", Doubt("", {}, asked))]


class Few:
    """A probe on which every remedy gets as far as it is told to."""

    def __init__(self, reach):
        self.reach = reach
        self.model: Any = type("Model", (), {"draws": 1})()
        self.tried: list[Candidate] = []

    def few(self, n):
        return self

    def __len__(self):
        return 16


@pytest.fixture
def picked(monkeypatch):
    def run(asked, reach, **options):
        probe: Any = Few(reach)

        def reached(few, candidate):
            few.tried.append(candidate)
            return reach(candidate)

        monkeypatch.setattr(remedies, "_own", lambda found: [("", None), ("annealed", None)])
        monkeypatch.setattr(Few, "attacked", lambda *_: None, raising=False)
        monkeypatch.setattr(remedies, "_reach", lambda path: (0.0, -1.0))
        monkeypatch.setattr(remedies, "_reached", reached)
        return probe, chosen(probe, candidates(doubts(*asked), False, "", **options))

    return run


def test_stand_ins_grow_narrower_along_noisy_steps(picked):
    def reach(candidate):
        return 0.0, -0.9 + 0.1 * (candidate.route == NARROW)

    probe, _ = picked((WIDE, {**WIDE, "width": 0.25}, NARROW, *NOISE), reach)
    inner = [c.route for c in probe.tried if c.search == "annealed"]
    assert inner == [{}, {**WIDE, "narrowing": 100}, {**WIDE, "width": 0.25, "narrowing": 100}]
    around = [c.route["inner"] for c in probe.tried if c.route.get("inner")]
    assert around == [NARROW]


def test_noisy_steps_go_through_stand_ins_of_random_models_too(picked):
    averaged = {"name": "expectation", "draws": 16, "inner": WIDE}
    probe, _ = picked((averaged, NOISE[1]), lambda c: (0.0, -0.5))
    inner = [c.route for c in probe.tried if c.search == "annealed"]
    assert [r.get("operators") for r in inner] == [None, ["topk"], ["topk"]]


def test_one_noise_is_enough_and_the_cheaper_one(picked):
    _, found = picked(NOISE, lambda c: (0.5, -0.1))
    assert [c.search for c in found] == ["annealed"]


def test_restarts_are_those_of_the_search_that_helps(picked):
    _, found = picked((*NOISE, RESTARTS), lambda c: (0.5, -0.1))
    assert [(c.search, c.restarts) for c in found] == [("annealed", 1), ("annealed", 2)]
    _, found = picked((*NOISE, RESTARTS), lambda c: (0.0, -2.0))
    assert found[-1].search == "restarts"


def test_a_short_plan_gets_routes_only(picked):
    probe, _ = picked((*NOISE, RESTARTS), lambda c: (0.5, -0.1), routes_only=True)
    assert {c.search for c in probe.tried} == {""}


@pytest.mark.parametrize(
    ("n_classes", "goal", "aims"), [(10, -1, 3), (3, -1, 2), (2, -1, 0), (10, 4, 0)]
)
def test_narrowing_stand_ins_aim_at_classes_and_nothing_else_does(n_classes, goal, aims):
    model = type("Model", (), {"draws": 1, "n_classes": n_classes})()
    probe: Any = type("Probe", (), {"model": model, "goal": torch.full((4,), goal)})()
    first = Candidate({**WIDE, "narrowing": 100}, ("hard_steps",), search="annealed")
    other = Candidate(NARROW, ("hard_steps",))
    added = remedies.stages(probe, [first, other], 5, "linf")
    expected = [("annealed", 0), ("annealed", aims), ("apgd", 0)]
    assert [(a.attack, a.options.get("n_targets", 0)) for a in added] == [
        pair for i, pair in enumerate(expected) if i != 1 or aims
    ]
    alone = remedies.stages(probe, [other], 5, "linf")
    assert len(alone) == (2 if aims else 1)
