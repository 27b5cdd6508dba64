"""Several hardenings: what is varied, which points are best, and going on after a stop."""

import json

import hardening_tools as small
import pytest

from holdfast.defenses.pgd_training import PGDTraining
from holdfast.errors import PlanError
from holdfast.hardening.dials import Dial, as_dial, check, parse_dial, turned
from holdfast.hardening.frontier import (
    Frontier,
    Point,
    PointDone,
    PointStarted,
    efficient,
    frontier,
    run_frontier,
)
from holdfast.hardening.frontier_page import render, text

pytest.importorskip("optuna")
TINY = {"batch_size": 100, "n_validation": 20, "validation_steps": 1}


def test_dials_are_lists_ranges_and_recipes():
    assert parse_dial("beta=1, 3,6").values == (1, 3, 6)
    assert parse_dial("recipe=pgd_training|trades(beta=3)").values == (
        "pgd_training",
        "trades(beta=3)",
    )
    assert parse_dial("budget=30s|2min").values == ("30s", "2min")
    span = parse_dial("beta=0.5..12")
    assert (span.low, span.high, span.is_log, span.is_integer) == (0.5, 12, True, False)
    assert parse_dial("epochs=2..6").spread(3) == [2, 4, 6]
    assert parse_dial("beta=1.0..16").spread(3) == pytest.approx([1, 4, 16])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("beta", "Write a list"),
        ("beta=", "Write a list"),
        ("beta=3..1", "smaller end first"),
        ("beta=a..b", "no number"),
        ("beta=1,,2", "Write a list"),
    ],
)
def test_what_cannot_be_read_is_told(words, said):
    with pytest.raises(PlanError, match=said):
        parse_dial(words)


def test_values_go_where_they_belong():
    ask = small.ask(small.mlp(), recipe=PGDTraining())
    new = turned(ask, {"steps": 3, "learning_rate": 0.5, "epochs": 4})
    assert new.recipe.attack.steps == 3  # inside the recipe's attack
    assert new.settings["learning_rate"] == 0.5
    assert new.epochs == 4
    assert ask.recipe.attack.steps != 3
    timed = turned(ask, {"budget": "2min", "recipe": "trades(beta=2)"})
    assert (timed.seconds, timed.epochs, timed.recipe.beta) == (120, None, 2)
    with pytest.raises(PlanError, match="Nothing is called 'bta'"):
        check(ask, [Dial("bta", values=(1, 2))])
    with pytest.raises(PlanError, match="varied twice"):
        check(ask, [Dial("epochs", values=(1,)), Dial("epochs", values=(2,))])


def test_points_that_another_beats_are_marked():
    def point(number, clean, robust, passes=1.0, failure=""):
        return Point(
            number=number, values={}, clean=clean, robust=robust, passes=passes, failure=failure
        )

    points = [
        point(0, 0.9, 0.5),
        point(1, 0.8, 0.6),
        point(2, 0.8, 0.5),
        point(3, 0.8, 0.6, 9.0),
        point(4, 1.0, 1.0, failure="NaN"),
    ]
    assert efficient(points, has_cost=False) == [True, True, False, True, False]
    assert efficient(points, has_cost=True) == [True, True, False, False, False]


def test_a_grid_is_made_audited_and_told(tmp_path):
    net = small.mlp()
    before = small.weights(net)
    events = []
    found = frontier(
        net,
        small.digits(200),
        threat=small.THREAT,
        recipe="pgd_training(attack=pgd(steps=1))",
        vary={"epochs": (1, 3)},
        n_audit=3,
        test=small.digits(10, "test"),
        out=tmp_path,
        on_event=events.append,
        epochs=1.0,
        **TINY,
    )
    assert small.same(before, small.weights(net))
    assert sorted(p.values["epochs"] for p in found.points) == [1, 3]
    assert found.efficient
    assert all(p.audit is not None for p in found.efficient)
    assert all(p.audit is None for p in found.points if not p.is_efficient)
    assert found.before is not None
    assert found.before.clean.n == 3
    more = {p.values["epochs"]: p.passes for p in found.points}
    assert more[3] > 2 * more[1]
    assert sum(isinstance(e, PointDone) for e in events) == 2
    page = (tmp_path / "frontier.html").read_text()
    assert "<svg" in page
    assert "3 test samples" in page
    stored = Frontier.model_validate(json.loads((tmp_path / "frontier.json").read_text()))
    assert stored == found
    assert text(stored) == str(found)


def test_a_stopped_search_goes_on_and_ends_as_one_that_was_not(tmp_path):
    def events(out):
        ask = small.ask(small.mlp(), 200, settings=TINY)
        return run_frontier(ask, [as_dial("label_smoothing", "0.0..0.2")], 3, out)

    def finish(steps):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    whole = finish(events(tmp_path / "whole"))
    stopped = events(tmp_path / "stopped")
    begun = 0
    while begun < 2:  # in the middle of the second point
        begun += isinstance(next(stopped), PointStarted)
    next(stopped)
    stopped.close()
    resumed = finish(events(tmp_path / "stopped"))
    key = ("number", "values", "clean", "robust", "passes", "is_efficient")
    assert [p.model_dump(include=set(key)) for p in resumed.points] == [
        p.model_dump(include=set(key)) for p in whole.points
    ]


def test_a_failed_point_leaves_the_others():
    kept = Point(number=0, values={"beta": 1.0}, clean=0.9, robust=0.5, is_efficient=True)
    lost = Point(number=1, values={"beta": 2.0}, failure="The loss is NaN.")
    told = Frontier(
        model="m",
        threats=("linf:0.1",),
        varied=("beta",),
        audited_on="",
        before=None,
        points=(kept, lost),
        command="holdfast frontier",
    )
    assert "Failed: beta=2: The loss is NaN." in text(told)
    assert "The loss is NaN." in render(told)
