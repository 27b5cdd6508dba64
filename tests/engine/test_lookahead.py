"""Looking ahead: fewer calls of the model, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from driving import finish, plan
from torch import nn

import holdfast
from holdfast.attacks.base import Problem
from holdfast.attacks.square import Square
from holdfast.engine import journal, lookahead
from holdfast.engine.jobs import NO_LIMIT, Job
from holdfast.engine.lookahead import is_able, room
from holdfast.engine.random import Rng
from holdfast.engine.tally import fresh, passed_over
from holdfast.model import Model, RowBlock, Tuning
from holdfast.record import Attempt

SEARCHES = {
    "linf:0.12": (
        {"attack": "square", "queries": 60},
        {"attack": "square_pgd", "warmup": 5, "queries": 30, "steps": 4, "rounds": 3},
    ),
    "l2:1.0": (
        {"attack": "square", "queries": 60, "rescale_schedule": True},
        {"attack": "square_pgd", "queries": 40, "steps": 4, "rounds": 3, "patience": 5.0},
    ),
    "l1:3.0": ({"attack": "square", "queries": 80},),
    "l0:3": ({"attack": "sparse_rs", "queries": 80},),
}


def audited(digits, threat, directory, **options):
    """The attempts of an audit of eight digits, and how often the network was called."""
    net, data = digits
    few = holdfast.data.ArrayData(*data.fetch(range(8)))
    calls = []
    handle = net.register_forward_hook(lambda _net, _given, _out: calls.append(0))
    finish(plan(threats=(threat,), stages=SEARCHES[threat], **options), net, few, directory)
    handle.remove()
    found = [r for r in journal.read(directory) if isinstance(r, Attempt)]
    return sorted(found, key=lambda r: (r.sample, r.stage, r.restart)), len(calls)


@pytest.mark.parametrize("threat", list(SEARCHES))
def test_looking_ahead_saves_calls_and_changes_nothing(digits, threat, tmp_path, monkeypatch):
    ahead, n_calls = audited(digits, threat, tmp_path / "a", trust="off", verify="off")
    monkeypatch.setattr(lookahead, "_MOST", 1)
    one_by_one, n_more = audited(digits, threat, tmp_path / "b", trust="off", verify="off")
    assert ahead == one_by_one
    assert n_calls < 0.8 * n_more


def test_nothing_is_asked_ahead_where_a_budget_may_end_between(digits, tmp_path, monkeypatch):
    threat = "linf:0.12"
    options = {"trust": "off", "verify": "off", "budget": {"queries": 70}}
    short, n_calls = audited(digits, threat, tmp_path / "a", **options)
    monkeypatch.setattr(lookahead, "_MOST", 1)
    assert (short, n_calls) == audited(digits, threat, tmp_path / "b", **options)


def model_with(**changed):
    model = Model(nn.Linear(2, 2))
    for name, value in changed.items():
        setattr(model, name, value)
    return model


def test_spare_rows_are_shared_out():
    assert room(model_with(), 1, 1) == 16
    assert room(model_with(), 3, 3) == 5
    assert room(model_with(), 5, 3) == 4
    assert room(model_with(), 16, 16) == 1
    assert room(model_with(), 40, 3) == 1
    assert room(model_with(), 4, 0) == 1
    assert room(model_with(block=RowBlock(32)), 4, 4) == 8
    assert room(model_with(block=RowBlock(4, is_filled=True)), 1, 1) == 4
    assert room(model_with(block=RowBlock(64, is_fixed=True)), 16, 16) == 4
    full = Tuning(has_room=False)
    assert room(model_with(tuning=full), 1, 1) == 1
    assert room(model_with(tuning=full, block=RowBlock(4)), 1, 1) == 4
    assert room(model_with(block=RowBlock(64, is_fixed=True)), 65, 60) == 2


@pytest.mark.parametrize(
    "changed", [{"draws": 4}, {"takes_arrays": True}, {"modules": ()}, {"max_rows": 2}]
)
def test_nobody_is_asked_ahead_who_may_mind(changed):
    assert room(model_with(**changed), 1, 1) == 1


def problem():
    x, y = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    goal = torch.full((3,), -1)
    allowed = holdfast.parse_threat("linf:0.1").bind(x, Model(nn.Linear(4, 2)).domain)
    return Problem(x, y, goal, allowed, Rng.from_seed(0, 3), torch.zeros(3, 2))


def test_a_job_with_a_limit_or_a_refused_claim_is_not_able():
    given = problem()
    jobs = [Job(i, 0) for i in range(3)]
    tally = fresh(jobs, given, given.target, False)
    assert is_able(jobs, tally)
    assert not is_able([*jobs[:2], Job(2, 0, -1, 0, 100, NO_LIMIT)], tally)
    assert not is_able([*jobs[:2], Job(2, 0, -1, 0, NO_LIMIT, 100)], tally)
    tally.rejected[1] = 1
    assert not is_able(jobs, tally)


def test_answers_that_are_passed_over_count_as_if_told():
    given = problem()
    tally = fresh([Job(i, 0) for i in range(3)], given, given.target, False)
    logits = torch.zeros(3, 2, 2)
    logits[:, 0, 0], logits[:, 1, 0] = 2.0, 1.0  # margins -2 and -1
    found = passed_over(tally, logits, torch.tensor([0, 1, 2]))
    assert found.forward.tolist() == found.queries.tolist() == [0, 1, 2]
    assert found.margin.tolist() == [-torch.inf, -2.0, -1.0]
    sure = torch.tensor([2.0, 0.0]).softmax(0)[0]
    torch.testing.assert_close(found.confidence[1], sure)
    torch.testing.assert_close(found.loss[1], -sure.log())
    assert found.loss[2] > found.loss[1]


def test_a_search_that_has_room_for_two_questions_foresees_no_third():
    attack, given = Square(queries=2), problem()
    states = attack.ahead(attack.init(given), 4)
    assert states.finished.reshape(3, 4).tolist() == [[False, False, True, True]] * 3
