"""Threads, rows and memory format: what is chosen, that it is kept, and that it changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from driving import finish, plan, result
from torch import nn

from holdfast.engine import journal, tuning
from holdfast.engine.tuning import tune
from holdfast.model import Model, Tuning

N = 100_000  # a long run: everything is worth measuring


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Two idle cores and clocks that only networks move: nothing here depends on the machine."""
    threads, now = [2], [0.0]
    monkeypatch.setattr(tuning, "_is_busy", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    read = {"perf_counter": lambda: now[0], "process_time": lambda: now[0]}
    monkeypatch.setattr(tuning, "time", SimpleNamespace(**read))
    Slow.now = now
    yield now
    assert threads == [2]


class Slow(nn.Module):
    """A linear model that takes the seconds that ``seconds(x)`` says."""

    now: list[float]

    def __init__(self, seconds):
        super().__init__()
        self.net, self.seconds = nn.Linear(48, 3), seconds

    def forward(self, x):
        self.now[0] += self.seconds(x)
        return self.net(x.reshape(len(x), -1))


def tuned(f, n=N, **options):
    model = Model(f)
    x = torch.rand(8, 3, 4, 4)
    with model.session():
        model.recognise(x)
        found = tune(model, x, n, **options)
    assert model.tuning == Tuning()
    return found


def by_threads(one, two):
    return Slow(lambda x: one if torch.get_num_threads() == 1 else two)


def test_threads_are_taken_where_they_pay():
    assert tuned(by_threads(0.03, 0.003)).threads == 2
    assert tuned(by_threads(0.02, 0.019)).threads == 1
    assert tuned(by_threads(0.003, 0.03)).threads == 1
    assert tuned(by_threads(0.03, 0.003), threads=1).threads == 1


def test_threads_that_stall_are_given_up_at_once(clock):
    assert tuned(by_threads(0.001, 5.0)).threads == 1
    assert clock[0] < 11  # recognising the model, and one pass of one row


def test_a_busy_machine_has_no_threads_to_spare(monkeypatch):
    monkeypatch.setattr(tuning, "_is_busy", lambda: True)
    assert tuned(by_threads(0.03, 0.003)).threads == 1


def test_calls_are_as_small_as_is_fast():
    square = Slow(lambda x: 1e-7 * len(x) ** 2)
    assert tuned(square).rows == 32  # the smallest that is tried of at most 256
    assert tuned(Slow(lambda x: 5e-3)).rows is None
    assert tuned(Slow(lambda x: 5e-3 * (1 + 2 * (len(x) // 130)))).rows == 128


def test_larger_calls_are_not_measured_where_smaller_ones_are_as_fast():
    sizes = []
    assert tuned(Slow(lambda x: sizes.append(len(x)) or 1e-4 * len(x)), threads=1).rows == 32
    assert max(sizes) == 32


def test_a_model_that_is_slow_is_not_measured_in_larger_calls():
    sizes = []
    slow = Slow(lambda x: sizes.append(len(x)) or 0.05 * len(x))
    assert tuned(slow, n=100, threads=1).rows is None
    assert max(sizes) == 8


def test_calls_have_room_where_a_few_rows_take_hardly_longer_than_one():
    assert tuned(Slow(lambda x: 0.01)).has_room
    assert tuned(Slow(lambda x: 0.01 + 0.001 * len(x))).has_room
    assert not tuned(Slow(lambda x: 0.01 * len(x))).has_room


def test_short_runs_are_not_measured():
    calls = []
    assert tuned(Slow(lambda x: calls.append(0) or 0.0), n=5) == Tuning(threads=1)
    assert len(calls) < 8


class Refuses(nn.Module):
    """Fast with channels last, which its view does not take."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.formats = nn.Conv2d(3, 4, 3), nn.Linear(16, 3), set()

    def forward(self, x):
        self.formats.add(x.is_contiguous())
        Slow.now[0] += 0.002 if x.is_contiguous() else 0.001
        return self.head(self.conv(x).view(len(x), -1))


def test_a_network_may_refuse_the_format():
    net = Refuses()
    assert not tuned(net).is_channels_last
    assert net.formats == {True, False}
    by_format = Slow(lambda x: 0.002 if x.is_contiguous() else 0.001)
    assert tuned(by_format).is_channels_last


def test_channels_last_gives_the_same_up_to_rounding():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    model, x = Model(net), torch.rand(8, 3, 4, 4)
    with model.session():
        plain = model.logits(x)
        model.tuning = Tuning(is_channels_last=True)
        torch.testing.assert_close(model.logits(x), plain)
    assert net[0].weight.is_contiguous()


def test_a_run_keeps_its_tuning_when_it_goes_on(digits, tmp_path, monkeypatch):
    net, data = digits
    chosen = Tuning(threads=1, rows=16)
    monkeypatch.setattr(tuning, "tune", lambda *_: chosen)
    stopped = plan(stages=plan().stages[:1])
    finish(stopped, net, data, tmp_path)
    assert journal.peek(tmp_path).tuning == {
        "threads": 1,
        "is_channels_last": False,
        "rows": 16,
        "precision": "float32",
        "has_room": True,
        "is_compiled": False,
    }
    seen = []
    monkeypatch.setattr(tuning, "tune", lambda *_: 1 / 0)
    model = Model(net)
    net.register_forward_hook(lambda *_: seen.append((torch.get_num_threads(), model.tuning)))
    finish(stopped, model, data, tmp_path)
    assert set(seen) == {(1, chosen)}
    assert model.tuning == Tuning()


def test_tuning_changes_no_byte(digits, tmp_path, monkeypatch):
    for name, chosen in (("a", Tuning(threads=1)), ("b", Tuning(threads=1, rows=16))):
        monkeypatch.setattr(tuning, "tune", lambda *_, chosen=chosen: chosen)
        finish(plan(), *digits, tmp_path / name)
    assert result(tmp_path / "a") == result(tmp_path / "b")
