"""Looks are records: resumed, switched off, and derived into a verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving_trust import EPS, Quantised, digits_net, plan, result

from holdfast import registry
from holdfast.data import ArrayData
from holdfast.engine import journal, slots
from holdfast.engine.run import run
from holdfast.model import Model
from holdfast.record import Attempt, Examined
from holdfast.reports._trust import Confidence
from holdfast.reports.report import Report
from holdfast.trust import examination


@pytest.fixture(scope="module")
def net():
    return digits_net()


@pytest.fixture(scope="module")
def whole(net, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    list(run(plan(), Model(Quantised(net[0])), net[1], directory))
    return directory


def test_a_doubt_becomes_stages(whole):
    looks = [r for r in journal.read(whole) if isinstance(r, Examined)]
    assert looks[0].added
    assert {s.check for s in looks[0].suspicions} >= {"hard_steps", "zero_gradients"}
    assert Report.load(whole).threats[EPS].trust.confidence is Confidence.LOWERED


@pytest.mark.slow
def test_same_result_when_stopped_again_and_again(net, whole, tmp_path):
    ticks = np.random.default_rng(0)
    for _ in range(6):
        events = run(plan(), Model(Quantised(net[0])), net[1], tmp_path)
        for _ in range(int(ticks.integers(1, 12))):
            if next(events, None) is None:
                break
        events.close()
    list(run(plan(), Model(Quantised(net[0])), net[1], tmp_path))
    assert result(tmp_path) == result(whole)


def test_same_result_for_shuffled_samples_and_other_batches(net, whole, tmp_path):
    order = torch.randperm(len(net[1]), generator=torch.Generator().manual_seed(1))
    data = ArrayData(net[1].x[order], net[1].y[order])
    list(run(plan(batch_size=7), Model(Quantised(net[0])), data, tmp_path))
    assert result(tmp_path) == result(whole)


def test_look_only_and_off(net, tmp_path):
    for trust, confidence in (("look", Confidence.OPEN), ("off", Confidence.UNKNOWN)):
        directory = tmp_path / trust
        list(run(plan(trust=trust), Model(Quantised(net[0])), net[1], directory))
        report = Report.load(directory)
        assert report.threats[EPS].trust.confidence is confidence
        stages = {r.stage for r in journal.read(directory) if isinstance(r, Attempt)}
        assert stages == {0}


@pytest.mark.parametrize("trust", ["act", "reroute"])
def test_a_short_plan_leaves_longer_attacks_to_others(net, tmp_path, trust):
    short = ({"attack": "pgd", "loss": "ce", "steps": 1, "step_size": 1e-4},)
    options = {"trust": trust, "stages": short, "threats": ("linf:0.2",)}
    list(run(plan(**options), Model(net[0]), net[1], tmp_path))
    looks = [r for r in journal.read(tmp_path) if isinstance(r, Examined)]
    assert "step_count" in {s.check for look in looks for s in look.suspicions}
    longer = [s for look in looks for s in look.added if not s.route]
    report = Report.load(tmp_path)
    assert bool(longer) == (trust == "act")
    assert (report.threats["linf:0.2"].trust.confidence is Confidence.LOWERED) == (trust == "act")
    assert ("Longer attacks are left" in report._repr_html_()) == (trust == "reroute")


def test_a_number_that_fell_later_on_is_said_to_lack_longer_attacks_too(net, tmp_path):
    weak = {"attack": "pgd", "loss": "ce", "steps": 1, "step_size": 1e-4}
    stages = (weak, {"attack": "square", "queries": 200})
    options = {"trust": "reroute", "stages": stages, "threats": ("linf:0.25",)}
    list(run(plan(**options), Model(net[0]), net[1], tmp_path))
    report = Report.load(tmp_path)
    assert report.threats["linf:0.25"].trust.confidence is Confidence.LOWERED
    assert "Here is what lowered it" in report._repr_html_()
    assert "Longer attacks are left" in report._repr_html_()


def test_a_short_plan_follows_other_gradients_all_the_same(net, tmp_path):
    list(run(plan(trust="reroute"), Model(Quantised(net[0])), net[1], tmp_path))
    assert Report.load(tmp_path).threats[EPS].trust.confidence is Confidence.LOWERED


def test_the_seed_of_the_plan_is_the_looks_too(net, tmp_path, monkeypatch):
    seen, make = {}, examination.Probe
    for seed in (0, 1):

        def watched(seed=seed, **parts):
            seen.setdefault(seed, []).append(parts["rng"].key)
            return make(**parts)

        monkeypatch.setattr(examination, "Probe", watched)
        directory = tmp_path / str(seed)
        list(run(plan(trust="look", seed=seed), Model(Quantised(net[0])), net[1], directory))
    assert not set(seen[0][0].tolist()) & set(seen[1][0].tolist())


def test_every_check_has_a_card():
    assert len(registry.checks()) >= 12
    for name, check in registry.checks().items():
        assert check.card.name == name
        assert check.__module__ == f"holdfast.trust.{name}"
        assert check.card.title
        assert check.card.paper


def test_answers_along_another_route_are_not_known_to_the_judge(net, tmp_path, monkeypatch):
    seen, judged = [], slots.judge

    def watched(model, points, *rest):
        seen.append(rest[-1] is not None)
        return judged(model, points, *rest)

    monkeypatch.setattr(slots, "judge", watched)
    list(run(plan(), Model(Quantised(net[0])), net[1], tmp_path))
    assert False in seen
