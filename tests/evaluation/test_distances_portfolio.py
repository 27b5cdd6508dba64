"""What the default search for smallest changes consists of."""

from __future__ import annotations

import pytest

from holdfast.evaluation._ranking import ASKING, CHECKING
from holdfast.evaluation.distances import PACE, portfolio

BEGINS = {
    "linf": ["x", "nearest"],
    "l2": ["x", "afar", "afar, sure", "spare", "afar, led", "nearest"],
    "l1": ["x", "afar", "spare", "nearest"],
    "l0": ["afar", "afar", "nearest"],
}
MANY = {"l2": ["x", "afar", "afar", "afar", "afar", "afar", "nearest"]}
MANY["l1"] = ["x", "afar", "x", "nearest"]
FEW = {"l2": ["x", "afar", "nearest"]}  # too few passes to ask


@pytest.mark.parametrize("norm", BEGINS)
@pytest.mark.parametrize("budget", [40, 200, 1000])
def test_turns_share_the_passes_and_end_at_the_nearest(norm, budget):
    turns = portfolio(norm, budget)
    special = {40: FEW, 1000: MANY}.get(budget, {})
    assert [turn.begins for turn in turns] == special.get(norm, BEGINS[norm])
    looked = CHECKING if any(turn.n_looked for turn in turns) else 0
    asked = looked and looked + ASKING
    assert passes_of(turns, {"afar"}) + looked == budget
    if asked:
        assert passes_of(turns, {"afar, sure"}) + asked == budget
        assert budget - 1 <= passes_of(turns, {"spare", "afar, led"}) + asked <= budget
    else:
        assert {t.passes for t in turns if t.begins == "spare"} <= {t.passes for t in turns[1:2]}
    for turn in turns:
        jobs = max(1, turn.attack.option("n_targets", 0))
        cost = 2 * jobs * turn.attack.option("steps", 0)
        assert cost <= max(turn.passes, 2 * jobs)


def passes_of(turns, whose):
    """Those of the turns that everyone has, and of ``whose``."""
    return sum(turn.passes for turn in turns if turn.begins in {"x", "nearest", *whose})


def test_a_run_looks_at_no_more_classes_than_there_are():
    assert portfolio("l2", 1000)[0].attack.option("n_targets", 0) == 5
    assert portfolio("l2", 1000, n_wrong=1)[0].attack.option("n_targets", 0) == 1


@pytest.mark.parametrize("norm", PACE)
def test_each_norm_has_its_pace(norm):
    turns = [t for t in portfolio(norm, 200)[1:] if t.attack.card.name == "shrinking_ball"]
    assert turns
    for turn in turns:
        options = turn.attack.options()
        assert {name: options[name] for name in PACE[norm]} == PACE[norm]


def test_a_long_run_is_begun_only_where_it_can_end():
    names = [[t.attack.card.name for t in portfolio("l1", budget)] for budget in (400, 420)]
    assert "primal_dual" not in names[0]
    assert names[1].count("primal_dual") == 1
    assert portfolio("l1", 1000)[2].passes == 600
