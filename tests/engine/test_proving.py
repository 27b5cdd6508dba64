"""Proofs beside attacks in one run."""

from __future__ import annotations

import pytest
import torch
from driving import finish, plan
from torch import nn

import holdfast
from holdfast.data import ArrayData
from holdfast.engine import journal, proving
from holdfast.errors import SoundnessError
from holdfast.model import Model
from holdfast.record import Attempt, Finding, Outcome, Proven
from holdfast.verifiers.certify import Certified

EPS = "linf:0.05"


def small(k=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, k)).eval()


@pytest.fixture
def toy():
    net = small()
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    return net, ArrayData(x, net(x).argmax(1))


def of(directory, kind):
    return [r for r in journal.read(directory) if isinstance(r, kind)]


@pytest.mark.parametrize("effort", ["fast", "standard", "thorough"])
@pytest.mark.parametrize("norm", ["linf:0.05", "l2:0.08", "l1:0.1"])
def test_verified_and_broken_are_apart_and_true(toy, tmp_path, effort, norm):
    net, data = toy
    finish(plan(threats=(norm,), verify=effort), net, data, tmp_path)
    proven = {r.sample for r in of(tmp_path, Proven)}
    broken = {r.sample for r in of(tmp_path, Attempt) if r.outcome is Outcome.BROKEN}
    assert proven
    assert not proven & broken
    report = holdfast.Report.load(tmp_path)
    assert report.verified_accuracy.k == len(proven)
    assert report.verified_accuracy.k <= report.robust_accuracy.k
    if effort == "thorough" and norm == EPS:
        assert len(proven) + len(broken) == len(data)
    rows = sorted(proven)
    allowed = holdfast.parse_threat(norm).bind(data.x[rows], holdfast.Domain())
    for seed in range(50):
        z = allowed.sample(holdfast.engine.random.Rng.from_seed(seed, len(rows)))
        assert bool((net(z).argmax(1) == data.y[rows]).all())


def test_proven_samples_are_not_attacked(toy, tmp_path):
    net, data = toy
    finish(plan(threats=(EPS,), verify="fast"), net, data, tmp_path)
    proven = {r.sample for r in of(tmp_path, Proven)}
    assert not proven & {r.sample for r in of(tmp_path, Attempt)}


def test_normalisation_and_single_logits_are_part_of_the_proof(tmp_path):
    net = small(1)
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    model = Model(net, mean=0.3, std=0.5, head="logit")
    with torch.no_grad():
        net[2].bias -= net((x - 0.3) / 0.5).median()
        y = (net((x - 0.3) / 0.5)[:, 0] > 0).long()
    data = ArrayData(x, y)
    assert len(y.unique()) == 2
    finish(plan(threats=(EPS,), verify="thorough"), model, data, tmp_path)
    report = holdfast.Report.load(tmp_path)
    assert 0 < report.verified_accuracy.k == report.robust_accuracy.k


def test_what_cannot_be_proven_says_why(toy, tmp_path):
    net, data = toy
    finish(plan(threats=(EPS,), verify="fast"), lambda x: net(x), data, tmp_path)
    texts = [f.text for f in of(tmp_path, Finding) if f.code == "not_verifiable"]
    assert len(texts) == 1
    assert "torch.nn.Module" in texts[0]
    assert not of(tmp_path, Proven)


def test_a_false_proof_stops_the_run(toy, tmp_path):
    net, data = toy
    finish(plan(threats=(EPS,)), net, data, tmp_path)
    broken = next(r for r in of(tmp_path, Attempt) if r.outcome is Outcome.BROKEN)
    lie = Proven(threat=EPS, sample=broken.sample, margin=1.0, effort="fast")
    with journal.journal_path(tmp_path).open("ab") as file:
        file.write(journal.RECORD.dump_json(lie) + b"\n")
    with pytest.raises(SoundnessError, match=rf"\[{broken.sample}\] are both"):
        finish(plan(threats=(EPS,)), net, data, tmp_path)


def test_survivors_are_proven_unasked(toy, tmp_path):
    net, data = toy
    finish(plan(threats=(EPS,)), net, data, tmp_path / "auto")
    finish(plan(threats=(EPS,), verify="off"), net, data, tmp_path / "off")
    finish(plan(threats=(EPS,), verify="fast"), net, data, tmp_path / "fast")
    proven = {name: {r.sample for r in of(tmp_path / name, Proven)} for name in ("auto", "fast")}
    broken = {r.sample for r in of(tmp_path / "auto", Attempt) if r.outcome is Outcome.BROKEN}
    assert proven["auto"]
    assert proven["auto"] <= proven["fast"] - broken
    assert not of(tmp_path / "off", Proven)
    auto, off = (holdfast.Report.load(tmp_path / name) for name in ("auto", "off"))
    assert auto.robust_accuracy == off.robust_accuracy
    assert auto.verified_accuracy.k == len(proven["auto"])


def test_proofs_unasked_end_with_the_first_group_without_one(toy, tmp_path, monkeypatch):
    net, data = toy
    sizes = []

    def none_proven(graph, x, y, *rest, **more):
        sizes.append(len(x))
        return [Certified("unknown", -1.0) for _ in x]

    monkeypatch.setattr(proving, "certify", none_proven)
    finish(plan(threats=("linf:0.001",)), net, data, tmp_path)
    assert len(data) > proving.CHUNK_WHERE_CHEAP
    assert sizes == [proving.CHUNK_WHERE_CHEAP]


def test_the_surest_samples_are_proven_first(toy, tmp_path, monkeypatch):
    net, data = toy
    tried = []

    def none_proven(graph, x, y, *rest, **more):
        tried.append(x)
        return [Certified("unknown", -1.0) for _ in x]

    monkeypatch.setattr(proving, "certify", none_proven)
    finish(plan(threats=("linf:0.001",)), net, data, tmp_path)
    with torch.no_grad():
        best = net(data.x).topk(2, dim=1).values.diff().abs().flatten()
        least = net(tried[0]).topk(2, dim=1).values.diff().abs().min()
    assert int((best > least).sum()) == proving.CHUNK_WHERE_CHEAP - 1


@pytest.mark.parametrize("why", ["function", "size"])
def test_no_word_where_proofs_unasked_cannot_be(toy, tmp_path, monkeypatch, why):
    net, data = toy
    monkeypatch.setattr(proving, "MOST_NEURONS", 11 if why == "size" else 12)
    model = (lambda x: net(x)) if why == "function" else net
    finish(plan(threats=(EPS,)), model, data, tmp_path)
    assert not of(tmp_path, Proven)
    assert not [f for f in of(tmp_path, Finding) if f.code == "not_verifiable"]


def test_a_far_too_large_network_is_not_even_captured(toy, tmp_path, monkeypatch):
    net, data = toy
    captured = []

    def refuse(*_):
        captured.append(1)
        raise ValueError

    monkeypatch.setattr(proving, "FAR_TOO_MANY", 26)  # values: 12, 12 and 3
    monkeypatch.setattr(proving, "_captured", refuse)
    finish(plan(threats=(EPS,)), net, data, tmp_path)
    assert not captured
    assert not of(tmp_path, Proven)
    assert not any(layer._forward_hooks for layer in net)
    monkeypatch.setattr(proving, "FAR_TOO_MANY", 27)
    finish(plan(threats=(EPS,)), net, data, tmp_path / "larger")
    assert captured
