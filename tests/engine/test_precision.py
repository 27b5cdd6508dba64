"""The search may round coarsely; verdicts may not."""

from __future__ import annotations

import pytest
import torch
from driving import finish, plan
from torch import nn

import holdfast
from holdfast.data import ArrayData
from holdfast.engine import journal, slots
from holdfast.errors import HoldfastError
from holdfast.model import Model
from holdfast.record import Attempt, Header, Outcome

EPS = "linf:0.1"


class Recording(nn.Module):
    """A classifier that remembers whether it ran in autocast, and may lie there."""

    def __init__(self, lies=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.lies = lies
        self.seen = set()

    def forward(self, x):
        is_halved = torch.is_autocast_enabled("cpu")
        self.seen.add((is_halved, torch.is_grad_enabled()))
        z = self.net(x)
        return z.roll(1, 1) if self.lies and is_halved else z


@pytest.fixture
def toy():
    net = Recording()
    x = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
    net.seen.clear()
    return net, ArrayData(x, y)


def test_the_search_is_in_bf16_and_every_verdict_in_float32(toy, tmp_path):
    net, data = toy
    finish(plan(threats=(EPS,), precision="bf16", verify="off"), net, data, tmp_path)
    assert (True, True) in net.seen
    assert (False, False) in net.seen
    report = holdfast.Report.load(tmp_path)
    assert report.robust_accuracy.k < len(data)


def test_what_fools_only_in_bf16_never_counts(toy, tmp_path):
    _, data = toy
    liar = Recording(lies=True)
    finish(plan(threats=("linf:1e-6",), precision="bf16", verify="off"), liar, data, tmp_path)
    assert holdfast.Report.load(tmp_path).robust_accuracy.value == 1.0


def test_bf16_breaks_what_float32_breaks(toy, tmp_path):
    net, data = toy
    broken = {}
    for precision in ("float32", "bf16"):
        place = tmp_path / precision
        finish(plan(threats=(EPS,), precision=precision, verify="off"), net, data, place)
        attempts = [r for r in journal.read(place) if isinstance(r, Attempt)]
        broken[precision] = {r.sample for r in attempts if r.outcome is Outcome.BROKEN}
    assert broken["float32"]
    assert len(broken["float32"] ^ broken["bf16"]) <= 1


def test_batch_size_changes_no_byte_in_bf16(toy, tmp_path):
    net, data = toy
    found = []
    for size in (1, 7, 64):
        place = tmp_path / str(size)
        order = plan(threats=(EPS,), precision="bf16", verify="off", batch_size=size)
        finish(order, net, data, place)
        attempts = [r for r in journal.read(place) if isinstance(r, Attempt)]
        found.append(sorted((r.sample, r.stage, r.outcome, r.margin, r.forward) for r in attempts))
    assert found[0] == found[1] == found[2]


def test_precision_is_part_of_the_plan_and_written_down(toy, tmp_path):
    net, data = toy
    assert plan(precision="bf16").id != plan(precision="float32").id
    finish(plan(threats=(EPS,), precision="bf16"), net, data, tmp_path)
    header = next(r for r in journal.read(tmp_path) if isinstance(r, Header))
    assert header.tuning["precision"] == "bf16"


def test_tf32_needs_a_gpu(toy, tmp_path):
    net, data = toy
    with pytest.raises(HoldfastError, match=r"NVIDIA's GPUs, and the model runs on cpu.*bf16"):
        finish(plan(threats=(EPS,), precision="tf32"), net, data, tmp_path)


def test_answers_outside_a_search_stay_in_float32(toy):
    net, data = toy
    model = Model(net)
    model.tuning = holdfast.model.Tuning(precision="bf16")
    with model.session():
        model.recognise(data.x[:4])
        before = model.logits(data.x)
        model.search([holdfast.attacks.base.Query(data.x)])
        assert torch.equal(model.logits(data.x), before)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("precision", "is_known"), [("float32", True), ("bf16", False)])
def test_only_answers_in_float32_are_known_to_the_judge(
    toy, tmp_path, monkeypatch, precision, is_known
):
    net, data = toy
    seen, judged = [], slots.judge

    def watched(*args):
        seen.append(args[-1] is not None)
        return judged(*args)

    monkeypatch.setattr(slots, "judge", watched)
    finish(plan(threats=(EPS,), precision=precision, verify="off"), net, data, tmp_path)
    assert set(seen) == {is_known}
