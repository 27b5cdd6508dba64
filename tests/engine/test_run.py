"""Whole runs on a real network: what a verdict may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving import EPS, finish, plan, result
from torch import nn

import holdfast
from holdfast.data import ArrayData
from holdfast.engine import journal
from holdfast.engine.journal import journal_path
from holdfast.errors import JournalError, ModelCrash
from holdfast.events import Stopped
from holdfast.model import Model
from holdfast.perturbations.ball import Ball
from holdfast.record import Attempt, Clean, Finding, Outcome, Session


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    net, data = digits
    directory = tmp_path_factory.mktemp("reference")
    finish(plan(), net, data, directory)
    return directory


def broken(directory):
    return {r.sample for r in of(directory, Attempt) if r.outcome is Outcome.BROKEN}


def of(directory, kind):
    return [r for r in journal.read(directory) if isinstance(r, kind)]


def test_every_stage_has_work(reference):
    attempts = of(reference, Attempt)
    assert {a.stage for a in attempts} == {0, 1, 2}
    assert 10 < len(broken(reference)) < 55


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_same_result_for_any_batch_size(digits, reference, tmp_path, batch_size):
    net, data = digits
    finish(plan(batch_size=batch_size), net, data, tmp_path)
    assert result(tmp_path) == result(reference)


def test_same_result_for_shuffled_samples(digits, reference, tmp_path):
    net, data = digits
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    finish(plan(), net, ArrayData(data.x[order], data.y[order]), tmp_path)
    assert result(tmp_path) == result(reference)


def test_another_seed_is_another_run(digits, reference, tmp_path):
    net, data = digits
    finish(plan(seed=1), net, data, tmp_path)
    assert result(tmp_path) != result(reference)


def test_same_result_when_stopped_again_and_again(digits, reference, tmp_path):
    net, data = digits
    the_plan, ticks = plan(batch_size=16), np.random.default_rng(0)
    for _ in range(10):
        events = holdfast.engine.run.run(the_plan, Model(net), data, tmp_path)
        for _ in range(int(ticks.integers(1, 9))):
            if next(events, None) is None:
                break
        events.close()
    finish(the_plan, net, data, tmp_path)
    assert result(tmp_path) == result(reference)
    assert of(tmp_path, Session)[-1].outcome == "finished"


def test_same_result_from_every_torn_journal(digits, reference, tmp_path):
    net, data = digits
    whole = journal_path(reference).read_bytes()
    for cut in np.random.default_rng(1).integers(len(whole) // 20, len(whole), 5):
        directory = tmp_path / str(cut)
        directory.mkdir()
        for file in reference.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        journal_path(directory).write_bytes(whole[: int(cut)])
        finish(plan(), net, data, directory)
        assert result(directory) == result(reference)


def test_finished_run_is_not_run_again(digits, reference):
    net, data = digits
    model = Model(net)
    before = len(of(reference, Attempt))
    finish(plan(), model, data, reference)
    assert len(of(reference, Attempt)) == before
    assert model.passes.backward < 500  # the checks alone


def test_every_broken_sample_is_broken(digits, reference):
    net, data = digits
    report = holdfast.Report.load(reference)
    rows, x_adv = report.adversarial(EPS)
    assert len(rows) == len(broken(reference))
    change = (x_adv.double() - data.x[rows].double()).abs().flatten(1).amax(1)
    assert float(change.max()) <= 0.12 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    with torch.no_grad():
        assert bool((net(x_adv).argmax(1) != data.y[rows]).all())


def test_no_radius_breaks_nothing(digits, tmp_path):
    net, data = digits
    report = holdfast.audit(net, (data.x, data.y), "linf:0", cascade="quick", out=tmp_path)
    assert report.robust_accuracy.k == report.clean_accuracy.k


def test_refuses_another_plan_model_or_data(digits, reference, tmp_path):
    net, data = digits
    before = journal_path(reference).read_bytes()
    other = holdfast.demo.train(data.x, data.y, seed=3)
    changed = ArrayData(data.x.flip(0), data.y.flip(0))
    for the_plan, model, the_data, word in (
        (plan(seed=5), net, data, "plan"),
        (plan(), other, data, "weights"),
        (plan(), net, changed, "data"),
    ):
        with pytest.raises(JournalError, match=word):
            finish(the_plan, model, the_data, reference)
    assert journal_path(reference).read_bytes() == before


def test_damaged_journal_is_refused(digits, reference, tmp_path):
    lines = journal_path(reference).read_bytes().splitlines(keepends=True)
    lines[3] = b'{"kind": "clean", "sample": \n'
    journal_path(tmp_path).write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 4 is damaged"):
        journal.read(tmp_path)


class Crashing(nn.Module):
    """Raises at its ``at``-th call in evaluation."""

    def __init__(self, net, at):
        super().__init__()
        self.net, self.at, self.calls = net, at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("the network is on fire")
        return self.net(x)


def test_model_that_crashes_in_the_middle(digits, reference, tmp_path):
    net, data = digits
    net.train()
    crashing = Crashing(net, 40)
    with pytest.raises(ModelCrash, match="on fire"):
        finish(plan(batch_size=16), crashing, data, tmp_path)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert of(tmp_path, Session)[-1].outcome == "failed"
    crashing.at = -1
    finish(plan(batch_size=16), crashing, data, tmp_path)
    assert result(tmp_path) == result(reference)
    net.eval()


def test_interrupted_run_says_so(digits, tmp_path):
    net, data = digits
    events = holdfast.engine.run.run(plan(), Model(net), data, tmp_path)
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert of(tmp_path, Session)[-1].outcome == "interrupted"


def test_time_budget_stops_and_resumes(digits, reference, tmp_path):
    net, data = digits
    the_plan = plan(budget=holdfast.Budget(seconds=1e-6))
    events = finish(the_plan, net, data, tmp_path)
    assert next(e for e in events if isinstance(e, Stopped)).n_unfinished > 0
    assert holdfast.Report.load(tmp_path).n_unfinished > 0
    finish(plan(), net, data, tmp_path)
    assert result(tmp_path) == result(reference)


def test_pass_budget_holds_for_every_sample(digits, tmp_path):
    net, data = digits
    finish(plan(budget=holdfast.Budget(passes=30)), net, data, tmp_path)
    spent: dict[int, int] = {}
    for a in of(tmp_path, Attempt):
        judged = 2 if a.outcome is Outcome.BROKEN else 0
        spent[a.sample] = spent.get(a.sample, 0) + a.forward + a.backward - judged
    assert max(spent.values()) <= 30
    assert any(a.outcome is Outcome.STOPPED for a in of(tmp_path, Attempt))


def test_several_threats_share_what_they_find(digits, tmp_path):
    net, data = digits
    finish(plan(threats=("linf:0.06", EPS)), net, data, tmp_path)
    small = {r.sample for r in of(tmp_path, Attempt) if r.threat != EPS and r.prediction >= 0}
    large = {r.sample for r in of(tmp_path, Attempt) if r.threat == EPS and r.prediction >= 0}
    assert small < large
    reused = [r for r in of(tmp_path, Attempt) if r.stage == -1]
    assert {r.sample for r in reused} == small
    report = holdfast.Report.load(tmp_path)
    assert report.n_unfinished == 0
    assert report.robust_accuracy.k == report.threats[EPS].robust_accuracy.k


def test_radius_per_sample(digits, tmp_path):
    net, data = digits
    eps = torch.where(torch.arange(len(data)) % 2 == 0, 0.0, 0.2)
    the_plan = plan(threats=("linf:0..0.2",))
    finish(the_plan, net, data, tmp_path, (Ball("linf", eps),))
    assert broken(tmp_path)
    assert all(i % 2 for i in broken(tmp_path))


@pytest.mark.parametrize("target", ["random", "least_likely", "runner_up", 3])
def test_targeted_goals_are_reached(digits, tmp_path, target):
    net, data = digits
    finish(plan(target=target, threats=("linf:0.3",)), net, data, tmp_path)
    wanted = {c.sample: c.target for c in of(tmp_path, Clean)}
    found = [r for r in of(tmp_path, Attempt) if r.outcome is Outcome.BROKEN]
    assert found
    assert all(r.prediction == wanted[r.sample] for r in found)
    assert all(wanted[i] != y for i, y in enumerate(data.y.tolist()) if target != 3)


def test_quantised_verdicts_survive_rounding(digits, tmp_path):
    net, data = digits
    x = (data.x * 255).round() / 255
    finish(plan(quantise="8bit"), net, ArrayData(x, data.y), tmp_path)
    rows, x_adv = holdfast.Report.load(tmp_path).adversarial(EPS)
    assert len(rows) > 5
    assert torch.equal((x_adv * 255).round() / 255, x_adv)
    assert float((x_adv.double() - x[rows].double()).abs().max()) <= 0.12 + 1e-6


def test_radii_are_upper_bounds_inside_eps(digits, reference):
    radii = {r.sample: r.radius for r in journal.read(reference) if r.kind == "radius"}
    assert radii.keys() == broken(reference)
    assert all(0 < r <= 0.12 + 1e-6 for r in radii.values())
    assert min(radii.values()) < 0.06


def test_margins_of_survivors_are_negative(reference):
    for a in of(reference, Attempt):
        assert (a.margin > 0) == (a.outcome is Outcome.BROKEN)


class Noisy(nn.Module):
    """Noise that changes the answer now and then."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        z = self.net(x)
        return z + self.size * torch.randn_like(z)


def test_random_model_is_noticed_and_judged_by_majority(digits, tmp_path):
    net, data = digits
    state = torch.get_rng_state()
    finish(plan(), Noisy(net, 1.0), data, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(f.code == "random_model" for f in of(tmp_path, Finding))
    rows, x_adv = holdfast.Report.load(tmp_path).adversarial(EPS)
    draws = torch.stack([Noisy(net, 1.0)(x_adv).argmax(1) for _ in range(200)])
    share = (draws != data.y[rows]).float().mean(0)
    assert float(share.mean()) > 0.75
    assert float((share > 0.3).float().mean()) > 0.95


class Small(nn.Module):
    """A device whose memory holds seven inputs."""

    def __init__(self, net):
        super().__init__()
        self.net, self.largest = net, 0

    def forward(self, x):
        if len(x) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.largest = max(self.largest, len(x))
        return self.net(x)


def test_memory_exhausted_halves_the_batch_and_goes_on(digits, reference, tmp_path):
    net, data = digits
    small = Small(net)
    finish(plan(), small, data, tmp_path)
    assert small.largest <= 7
    assert broken(tmp_path) == broken(reference)
    assert all(s.outcome == "finished" for s in of(tmp_path, Session))
