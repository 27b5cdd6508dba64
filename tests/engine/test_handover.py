"""A later stage goes on from the best point that earlier ones met."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from driving import EPS, finish, plan, result

from holdfast.attacks.square_pgd import SquarePGD
from holdfast.data import ArrayData
from holdfast.engine import handover, journal
from holdfast.engine.attacking import Attacking
from holdfast.engine.cascade import fitting
from holdfast.engine.handover import Handover
from holdfast.engine.journal import journal_path
from holdfast.engine.run import run
from holdfast.errors import JournalError, PlanError
from holdfast.model import Model
from holdfast.plan import Plan, Stage
from holdfast.record import Attempt, Clean
from holdfast.threat import Access, parse_threat

SEARCH = {"attack": "square_pgd", "queries": 12, "steps": 3, "rounds": 2, "restarts": 2}
STAGES = (
    {"attack": "fgsm", "loss": "margin"},
    {"attack": "malt", "steps": 2, "runs": 2, "start": "best"},
    {**SEARCH, "start": "best"},
    {"attack": "square", "queries": 5},
)
FILE = handover._path
planned = partial(plan, trust="off")


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    finish(planned(stages=STAGES), *digits, directory)
    return directory


def test_it_is_another_run_than_one_that_begins_afresh(digits, reference, tmp_path):
    stages = [{k: v for k, v in stage.items() if k != "start"} for stage in STAGES]
    finish(planned(stages=stages), *digits, tmp_path)
    assert result(tmp_path) != result(reference)


def test_jobs_begin_at_the_point_of_largest_margin(digits, tmp_path, monkeypatch):
    """The margin of a job's first point is the largest of all records before it."""
    seen, init = [], SquarePGD.init

    def watching(self, problem):
        if problem.start is not None:
            seen.append(problem)
        return init(self, problem)

    monkeypatch.setattr(SquarePGD, "init", watching)
    finish(planned(stages=STAGES), *digits, tmp_path)
    net, data = digits
    records = journal.read(tmp_path)
    clean = {r.sample: r.margin for r in records if isinstance(r, Clean)}
    n = 0
    for problem in seen:
        assert problem.allowed.contains(problem.start).all()
        logits = net(problem.start)
        own = logits.gather(1, problem.y[:, None]).squeeze(1)
        margins = logits.scatter(1, problem.y[:, None], -torch.inf).amax(1) - own
        for x, margin in zip(problem.x, margins.tolist(), strict=True):
            (sample,) = (data.x == x).flatten(1).all(1).nonzero().flatten().tolist()[:1]
            before = [r for r in records if isinstance(r, Attempt) and r.sample == sample]
            known = [[r.margin for r in before if (r.stage, r.restart) < (2, i)] for i in (0, 1)]
            best = [max([clean[sample], *margins]) for margins in known]
            assert min(abs(margin - one) for one in best) < 1e-5
            n += 1
    assert n > 10


@pytest.mark.parametrize("batch_size", [3, 1000])
def test_same_result_for_any_batch_size(digits, reference, tmp_path, batch_size):
    finish(planned(stages=STAGES, batch_size=batch_size), *digits, tmp_path)
    assert result(tmp_path) == result(reference)


def test_same_result_for_shuffled_samples_and_two_workers(digits, reference, tmp_path):
    net, data = digits
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    shuffled = ArrayData(data.x[order], data.y[order])
    finish(planned(stages=STAGES, workers=2), net, shuffled, tmp_path)
    assert result(tmp_path) == result(reference)


def test_same_result_when_stopped_again_and_again(digits, reference, tmp_path):
    the_plan, ticks = planned(stages=STAGES, batch_size=8), np.random.default_rng(0)
    for _ in range(8):
        events = run(the_plan, Model(digits[0]), digits[1], tmp_path)
        for _ in range(int(ticks.integers(3, 9))):
            if next(events, None) is None:
                break
        events.close()
    finish(the_plan, *digits, tmp_path)
    assert result(tmp_path) == result(reference)


def test_same_result_wherever_the_journal_was_cut(digits, reference, tmp_path, monkeypatch):
    """Points of later jobs in the file, and a last one that is not whole, are passed over."""
    monkeypatch.setattr("holdfast.engine.run.forget_points", lambda *_: None)
    full = tmp_path / "full"
    finish(planned(stages=STAGES), *digits, full)
    assert result(full) == result(reference)
    whole = journal_path(full).read_bytes()
    for cut in np.random.default_rng(1).integers(len(whole) // 4, len(whole), 3):
        directory = tmp_path / str(cut)
        directory.mkdir()
        for file in full.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        journal_path(directory).write_bytes(whole[: int(cut)])
        points = FILE(directory, EPS)
        points.write_bytes(points.read_bytes() + b"\1" * 5)
        finish(planned(stages=STAGES), *digits, directory)
        assert result(directory) == result(reference)


def test_the_file_goes_with_the_run(digits, reference, tmp_path):
    assert not FILE(reference, EPS).exists()
    events = run(planned(stages=STAGES, batch_size=8), Model(digits[0]), digits[1], tmp_path)
    for _ in events:
        if FILE(tmp_path, EPS).exists():
            break
    events.close()
    assert FILE(tmp_path, EPS).exists()


def test_nothing_is_kept_where_no_stage_asks(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Handover, "write", lambda *_: pytest.fail("a point was written"))
    finish(planned(stages=({"attack": "pgd", "steps": 3}, SEARCH)), *digits, tmp_path)


def test_only_points_that_may_be_asked_for_are_kept(tmp_path):
    stages = (
        {"attack": "pgd"},
        {**SEARCH, "start": "best", "within": 0.5, "norms": ["linf"]},
        {"attack": "square"},
    )
    context = SimpleNamespace(
        data=SimpleNamespace(shape=(2,)),
        model=SimpleNamespace(device=torch.device("cpu"), access=Access.GRADIENTS),
        plan=Plan(threats=(EPS, "l2:1"), stages=stages),
        journal=SimpleNamespace(directory=tmp_path),
    )
    points = Handover(context, parse_threat(EPS))
    assert points.is_needed
    assert not Handover(context, parse_threat("l2:1")).is_needed
    assert points.wants(0, 0.49)
    assert not points.wants(0, 0.5)
    assert points.wants(1, 0.1)  # the stage's own restarts
    assert not points.wants(2, 0.1)
    assert points.wants(3, 0.1)  # a stage that a look added


def test_a_point_is_found_by_sample_and_margin(tmp_path):
    context = SimpleNamespace(
        data=SimpleNamespace(shape=(1, 2)),
        model=SimpleNamespace(device=torch.device("cpu"), access=Access.GRADIENTS),
        plan=Plan(threats=(EPS,), stages=({"attack": "pgd"}, {**SEARCH, "start": "best"})),
        journal=SimpleNamespace(directory=tmp_path),
    )
    points = Handover(context, parse_threat(EPS))
    assert points.read([(3, -1.0)]) == [None]
    first, second = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.3, 0.4]])
    points.write(3, -1.0, first)
    points.write(3, -0.5, second)
    points.write(3, -1.0, second)  # known: left as it is
    for one in (points, Handover(context, parse_threat(EPS))):
        found = one.read([(3, -0.5), (4, -0.5), (3, -1.0)])
        assert torch.equal(found[0], second)
        assert found[1] is None
        assert torch.equal(found[2], first)


def test_a_full_disk_is_said(tmp_path):
    context = SimpleNamespace(
        data=SimpleNamespace(shape=(2,)),
        model=SimpleNamespace(device=torch.device("cpu"), access=Access.GRADIENTS),
        plan=Plan(threats=(EPS,), stages=({"attack": "pgd"},)),
        journal=SimpleNamespace(directory=tmp_path / "nowhere"),
    )
    with pytest.raises(JournalError, match="Cannot write"):
        Handover(context, parse_threat(EPS)).write(0, -1.0, torch.zeros(2))


def test_an_attack_that_begins_where_it_always_does_is_refused():
    stages = (Stage.model_validate({"attack": "pgd", "start": "best"}),)
    with pytest.raises(PlanError, match=r"start='best'.*'pgd'.*one of: malt, square_pgd"):
        fitting(stages, "linf", Access.GRADIENTS)


def test_a_stage_says_where_it_begins():
    stage = Stage.model_validate({"attack": "malt", "start": "best"})
    assert stage.describe() == "malt(), from the best point"


def test_equal_margins_leave_the_first_point(monkeypatch):
    kept = []
    attacking = SimpleNamespace(
        _margin=lambda sample: -1.0,
        _left=lambda sample, margin: 0.5,
        steps=[SimpleNamespace(stage=0)],
        handover=SimpleNamespace(
            wants=lambda stage, left: True, write=lambda *one: kept.append(one[:2])
        ),
    )
    job = SimpleNamespace(sample=7, stage=0)
    ended = [
        SimpleNamespace(job=job, best=torch.zeros(1), best_score=score) for score in (-1.0, -0.9)
    ]
    Attacking._hand_over(attacking, ended)
    assert kept == [(7, -0.9)]


def test_a_point_that_was_not_written_whole_is_cut_off(tmp_path):
    context = SimpleNamespace(
        data=SimpleNamespace(shape=(2,)),
        model=SimpleNamespace(device=torch.device("cpu"), access=Access.GRADIENTS),
        plan=Plan(threats=(EPS,), stages=({"attack": "pgd"},)),
        journal=SimpleNamespace(directory=tmp_path),
    )
    threat, point = parse_threat(EPS), torch.tensor([0.1, 0.2])
    Handover(context, threat).write(0, -1.0, point)
    with FILE(tmp_path, EPS).open("ab") as file:
        file.write(b"\1" * 7)
    Handover(context, threat).write(1, -2.0, 2 * point)
    (first, second) = Handover(context, threat).read([(0, -1.0), (1, -2.0)])
    assert torch.equal(first, point)
    assert torch.equal(second, 2 * point)
