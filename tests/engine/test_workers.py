"""Attacks in several processes: the same result as in one, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from driving import EPS, finish, plan, result
from test_killed import start, weights  # noqa: F401
from torch import nn

from holdfast import PGD, parse_threat
from holdfast.attacks.base import Problem
from holdfast.engine.jobs import Ended, Job
from holdfast.engine.preflight import preflight
from holdfast.engine.random import Rng
from holdfast.engine.slots import Rules, Slots
from holdfast.engine.workers.crew import Crew
from holdfast.engine.workers.wire import Done, pack, unpack
from holdfast.errors import ModelCrash, ModelError
from holdfast.model import Model
from holdfast.plan import ModelSpec
from holdfast.record import Outcome


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    finish(plan(threads=1), *digits, directory)
    return directory


def test_same_bytes_as_one_process(digits, reference, tmp_path):
    class OfThisFunction(nn.Module):
        """A class that no other process can import."""

        def __init__(self):
            super().__init__()
            self.net = digits[0]

        def forward(self, x):
            return self.net(x)

    events = finish(plan(workers=2, batch_size=16), OfThisFunction(), digits[1], tmp_path)
    assert not [event for event in events if getattr(event, "code", "") == "workers_round"]
    assert result(tmp_path) == result(reference)


class Waiting(nn.Module):
    """Takes a moment for every pass, so that jobs are in flight when something happens."""

    def __init__(self, net, seconds=0.01, signal_number=0, at=0):
        super().__init__()
        self.net, self.seconds, self.signal_number, self.at = net, seconds, signal_number, at
        self.calls, self.home = 0, os.getpid()

    def forward(self, x):
        time.sleep(self.seconds)
        self.calls += os.getpid() != self.home  # in a worker
        if self.calls > self.at > 0:
            os.kill(os.getpid(), self.signal_number or 1 // self.signal_number)
        return self.net(x)


def crew_of(net, data, n=2, source="", block=None):
    model = Model(net)
    model.recognise(data.x[:8])
    model.block = block or model.block
    return Crew(model, data.x[:8], data.y[:8], n, ModelSpec(source=source), seed=0)


def fill(slots, net, data):
    """PGD on all samples, as :class:`~holdfast.engine.attacking.Attacking` starts it."""
    n = len(data)
    none = torch.full((n,), -1)
    jobs = [Job(i, 0) for i in range(n)]
    allowed = parse_threat(EPS).bind(data.x, Model(net).domain)
    problem = Problem(data.x, data.y, none, allowed, Rng.from_seed(3, n), torch.zeros(n, 10))
    slots.add(PGD(steps=30), jobs, problem, none)


def ended(slots):
    """Until all jobs are over; by sample, what came out."""
    found = {}
    while not slots.is_empty:
        for one in slots.tick():
            assert one.job.sample not in found
            x_adv = None if one.x_adv is None else one.x_adv.numpy().tobytes()
            found[one.job.sample] = (one.outcome, one.forward, one.backward, one.margin, x_adv)
    return found


def test_a_killed_worker_costs_nothing_but_time(digits):
    net, data = Waiting(digits[0]), digits[1]
    model = Model(net)
    with model.session():
        preflight(model, data.x, data.y, data.y)  # so that rows round alike in any company
        alone = Slots(model, 64, Rules())
        fill(alone, net, data)
        expected = ended(alone)
        crew = crew_of(net, data, block=model.block)
        try:
            crew.begin(64, Rules())
            fill(crew, net, data)
            victim = crew._workers[0]
            while not crew.tick():
                pass  # until the first jobs are over: others are under way
            assert victim.jobs
            victim.process.send_signal(signal.SIGKILL)
            in_flight = len(victim.jobs)
            found = ended(crew)
        finally:
            crew.close()
    early = set(expected) - set(found)  # ended before the kill
    assert len(early) < len(expected) - in_flight + 1
    assert {i: expected[i] for i in found} == found
    assert [finding.code for finding in crew.notices] == ["worker_died"]
    assert "signal 9" in crew.notices[0].text
    assert crew.model.passes.backward > 0


def test_what_a_worker_says_of_earlier_jobs_is_dropped_but_paid(digits):
    crew = crew_of(digits[0], digits[1])
    now = crew.begin(64, Rules())._number
    job = Job(0, 0)
    worker, one = (
        SimpleNamespace(jobs={job: ("its chunk", 0)}),
        Ended(job, Outcome.SURVIVED, *[0] * 7),
    )
    before = (crew.model.passes.forward, crew.model.passes.backward)
    assert crew._done(worker, Done(now - 1, [one], 5, 3)) == []
    assert worker.jobs  # still under way
    assert crew._done(worker, Done(now, [one], 7, 4)) == [one]
    assert crew._done(worker, Done(now, [one], 0, 0)) == []  # nobody ends twice
    passes = crew.model.passes
    assert (passes.forward - before[0], passes.backward - before[1]) == (12, 7)


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_run(digits):
    net = Waiting(digits[0], signal_number=9, at=3)
    crew = crew_of(net, digits[1], n=1)
    try:
        crew.begin(64, Rules())
        fill(crew, net, digits[1])
        with pytest.raises(ModelCrash, match=r"died 4 times.*signal 9"):
            ended(crew)
    finally:
        crew.close()


@pytest.mark.slow
def test_a_model_that_raises_in_a_worker(digits, reference, tmp_path):
    with pytest.raises(ModelCrash, match="ZeroDivisionError"):
        finish(plan(workers=2), Waiting(digits[0], 0, 0, at=9), digits[1], tmp_path)
    finish(plan(), Waiting(digits[0], 0), digits[1], tmp_path)
    assert result(tmp_path) == result(reference)


class Unsendable(nn.Module):
    def __init__(self, net=None):
        super().__init__()
        self.net, self.lock = net or nn.Linear(64, 10), threading.Lock()

    def forward(self, x):
        return self.net(x)


def test_a_model_that_cannot_be_sent_says_what_to_do(digits, tmp_path):
    with pytest.raises(ModelError, match=r"sent to another process.*--workers 1"):
        finish(plan(workers=2), Unsendable(digits[0]), digits[1], tmp_path)


def random_network():
    """Another one in every process."""
    torch.seed()
    return Unsendable(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


@pytest.mark.slow
def test_a_model_loaded_again_must_be_the_same(digits):
    crew = crew_of(random_network(), digits[1], 1, f"{Path(__file__)}:random_network")
    try:
        crew.begin(8, Rules())
        fill(crew, crew.model.f, digits[1])
        with pytest.raises(ModelError, match="answers differently"):
            ended(crew)
    finally:
        crew.close()


def children(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        if f"PPid:\t{pid}" in lines:
            found.append(int(status.parent.name))
    return found


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("seconds", [0.5, 4.0, 8.0])
def test_a_killed_run_takes_its_workers_along(digits, reference, weights, tmp_path, seconds):  # noqa: F811
    process = start(weights, tmp_path, workers=2)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until = time.monotonic() + 60
    while not (workers := children(process.pid)) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < until, "orphans"
        time.sleep(0.05)
    finish(plan(), digits[0], digits[1], tmp_path)
    assert result(tmp_path) == result(reference)


def test_messages_carry_rows_not_whole_tensors():
    whole = torch.rand(1000, 100)
    row = unpack(pack(whole[:1]))
    assert torch.equal(row, whole[:1])
    assert len(pack(whole[:1])) < 2000
    row += 1  # its own memory, and writable
    for value in (whole.half(), whole > 0.5, whole.bfloat16(), torch.tensor(3), whole[:0]):
        assert torch.equal(unpack(pack(value)), value)
