import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic import STAGES, Run, records, write

from holdfast.engine import journal
from holdfast.errors import InputError, JournalError
from holdfast.plan import Stage
from holdfast.record import Attempt, Clean, Failure, Finding, Header, Outcome, Radius, Verdict
from holdfast.reports.fold import fold
from holdfast.reports.report import Report

THREAT = "linf:0.3"


def clean(sample, y=0, prediction=None, **changes):
    values = {
        "sample": sample,
        "key": "00",
        "y": y,
        "prediction": y if prediction is None else prediction,
        "confidence": 0.9,
        "confidence_predicted": 0.9,
        "margin": -2.0,
        "loss": 0.1,
        "forward": 1,
    }
    return Clean(**{**values, **changes})


def attempt(sample, stage=0, outcome="survived", threat=THREAT, **changes):
    values = {
        "threat": threat,
        "sample": sample,
        "stage": stage,
        "attack": "an attack",
        "outcome": Outcome(outcome),
        "forward": 10,
        "backward": 10,
        "margin": 0.5 if outcome == "broken" else -0.5,
        "loss": 1.0,
        "confidence": 0.4,
        "distance": 0.2 if outcome == "broken" else None,
        "prediction": 1 if outcome == "broken" else -1,
    }
    return Attempt(**{**values, **changes})


def header(**changes):
    return records(Run(n=4, **changes))[0]


def report_of(*found, **changes):
    return fold([header(**changes), *found])


def test_verdicts_follow_from_the_records():
    report = report_of(
        clean(0),
        clean(1),
        clean(2, prediction=5),
        clean(3),
        attempt(0, 0),
        attempt(0, 1, "broken", distance=0.25),
        attempt(1, 0),
        attempt(1, 1),
        attempt(3, 0),
    )
    result = report.threats[THREAT]
    expected = (Verdict.BROKEN, Verdict.UNKNOWN, Verdict.WRONG, Verdict.UNFINISHED)
    assert result.verdict == expected
    assert result.broken_by == (1, None, None, None)
    assert result.radius == (0.25, None, 0.0, None)
    assert [report.verdict(i) for i in range(4)] == list(expected)
    assert (report.robust_accuracy.k, report.robust_accuracy.n) == (2, 4)
    assert (report.clean_accuracy.k, report.n_unfinished) == (3, 1)
    assert [w.code for w in report.warnings if w.level == "warning"] == ["unfinished"]
    first, second = result.stages
    assert (first.n_entered, first.n_broken, first.n_surviving) == (3, 0, 3)
    assert (second.n_entered, second.n_broken, second.n_surviving) == (2, 1, 2)
    assert second.median_passes == 40
    assert result.forward == (20, 20, 0, 10)


def test_every_target_and_restart_must_be_tried():
    stages = (Stage(attack="apgd", loss="dlr", steps=5, n_targets=3),)
    tried = [attempt(0, 0, target=t) for t in (1, 2, 3)]
    assert report_of(clean(0), *tried, plan={"stages": stages}).verdict(0) is Verdict.UNKNOWN
    assert report_of(clean(0), *tried[:2], plan={"stages": stages}).verdict(0) is Verdict.UNFINISHED
    two = report_of(clean(0), *tried[:2], plan={"stages": stages}, k=3, class_names=())
    assert two.verdict(0) is Verdict.UNKNOWN, "three classes have two wrong ones"
    aimed = report_of(clean(0), tried[0], plan={"stages": stages, "target": "runner_up"})
    assert aimed.verdict(0) is Verdict.UNKNOWN, "a targeted attacker has one target"


def test_a_sample_of_the_wanted_class_has_nothing_to_reach():
    won = attempt(0, 0, "broken", prediction=0, target=0)
    report = report_of(clean(0, y=0, target=0), won, plan={"target": 0})
    assert report.verdict(0) is Verdict.UNKNOWN
    assert report.threats[THREAT].stages[0].n_broken == 0
    assert "already_target" in [w.code for w in report.warnings]


def test_a_spent_budget_ends_a_sample():
    report = report_of(clean(0), attempt(0, 0, "stopped"))
    assert report.verdict(0) is Verdict.UNKNOWN
    assert "sample_budget" in [w.code for w in report.warnings]


def test_the_same_record_twice_counts_once():
    found = records(Run(n=50))
    once, twice = fold(found), fold([*found[:-1], *found[1:]])
    assert once.threats == twice.threats
    assert once.samples == twice.samples


def test_records_in_any_order_give_one_report():
    found = records(Run(n=60, threats=(THREAT, "l2:1")))
    mixed = [found[0], *np.random.default_rng(0).permutation(np.array(found[1:], object)).tolist()]
    assert fold(found) == fold(mixed)


def test_inputs_found_under_another_threat():
    reused = attempt(0, -1, "broken", attack="found under l2:1")
    report = report_of(clean(0), clean(1), reused, attempt(1, 0), attempt(1, 1))
    result = report.threats[THREAT]
    assert result.verdict == (Verdict.BROKEN, Verdict.UNKNOWN)
    assert result.broken_by == (-1, None)
    assert [s.stage for s in result.stages] == [-1, 0, 1]
    assert result.stages[-1].n_surviving == 1


def test_attacks_that_are_not_installed_are_counted_all_the_same():
    plan = {"stages": (Stage(attack="from_a_plugin"),)}
    report = report_of(clean(0), attempt(0, 0, "broken"), clean(1), plan=plan)
    assert report.threats[THREAT].verdict == (Verdict.BROKEN, Verdict.UNFINISHED)
    assert report.threats[THREAT].stages[0].attack == "an attack"


def test_several_threats_are_joined_sample_by_sample():
    other = "l2:1"
    done = [attempt(i, s) for i in range(3) for s in range(2)]
    report = report_of(
        *(clean(i) for i in range(3)),
        *done,
        attempt(0, 0, "broken", other, distance=0.5),
        attempt(1, 0, threat=other),
        attempt(1, 1, threat=other),
        threats=(THREAT, other),
    )
    assert report.threats[THREAT].robust_accuracy.k == 3
    assert report.verdicts == (Verdict.BROKEN, Verdict.UNKNOWN, Verdict.UNFINISHED)
    assert report.verdict(2, THREAT) is Verdict.UNKNOWN


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.5, 0.95, 1.0]))
@settings(max_examples=15, deadline=None)
def test_the_figures_agree_with_each_other(seed, fall, right):
    report = fold(records(Run(n=40, falls=(fall, 0.1), clean=right, seed=seed)))
    result = report.threats[THREAT]
    curve = result.curve
    assert curve.at(0.0) == pytest.approx(report.clean_accuracy.value)
    assert curve.at(0.3) == pytest.approx(result.robust_accuracy.value)
    assert (np.diff(curve.accuracy) <= 1e-12).all()
    assert ((curve.lower <= curve.accuracy) & (curve.accuracy <= curve.upper)).all()
    assert sum(s.n_broken for s in result.stages) == result.count(Verdict.BROKEN)
    assert sum(c.robust_accuracy.k for c in result.classes) == result.robust_accuracy.k
    assert report.robust_accuracy.k <= report.clean_accuracy.k
    spent = sum(p.forward + p.backward for p in report.phases)
    assert spent == report.sessions[0].passes_forward + report.sessions[0].passes_backward


def test_curve_is_a_step_function_of_the_smallest_known_change():
    report = report_of(
        *(clean(i) for i in range(4)),
        attempt(0, 0, "broken", distance=0.3),
        Radius(threat=THREAT, sample=0, radius=0.1, forward=5),
        attempt(1, 0, "broken", distance=0.2),
        *(attempt(i, s) for i in (2, 3) for s in (0, 1)),
    )
    curve = report.threats[THREAT].curve
    assert curve.eps.tolist() == [0.0, 0.1, 0.2, 0.3]
    assert [curve.at(e) for e in (0.0, 0.0999, 0.1, 0.19, 0.2, 0.3)] == [1, 1, 0.75, 0.75, 0.5, 0.5]
    assert report.threats[THREAT].median_radius == 0.2


def test_median_radius_is_unknown_where_most_survive():
    survivors = [attempt(i, s) for i in (1, 2) for s in (0, 1)]
    report = report_of(
        clean(0), clean(1), clean(2), clean(3, prediction=1), attempt(0, 0, "broken"), *survivors
    )
    assert report.threats[THREAT].median_radius is None


def test_the_worst_class_is_the_most_surely_weak():
    many = [clean(i, y=1) for i in range(20)]
    fallen = [attempt(i, 0, "broken") for i in range(15)]
    rest = [attempt(i, s) for i in range(15, 20) for s in (0, 1)]
    single = (clean(20, y=2), attempt(20, 0, "broken"))
    result = report_of(*many, *fallen, *rest, *single).threats[THREAT]
    assert [c.robust_accuracy.k for c in result.classes] == [5, 0]
    assert result.worst_class.label == 1


def test_eps_zero_is_the_clean_accuracy():
    report = fold(records(Run(n=30, threats=("linf:0",), falls=(0.0, 0.0))))
    assert report.robust_accuracy.k == report.clean_accuracy.k
    assert report.threats["linf:0"].curve.accuracy.tolist() == [report.clean_accuracy.value]


def test_a_run_cut_short_says_so():
    report = fold(records(Run(n=50, n_finished=20, outcome="budget"))[:-30])
    assert report.n_unfinished > 0
    assert f"{report.n_unfinished} of 50 samples" in next(
        w.text for w in report.warnings if w.code == "unfinished"
    )


def test_samples_not_looked_at_are_unfinished():
    report = report_of(clean(0), attempt(0, 0), attempt(0, 1))
    assert (report.robust_accuracy.n, report.n_samples, report.n_unfinished) == (1, 4, 3)


def test_a_header_alone_is_a_report_without_results():
    report = report_of()
    assert math.isnan(report.clean_accuracy.value)
    assert "no result yet" in str(report)


def test_nothing_attacked_is_said_loudly():
    report = report_of(clean(0), plan={"stages": STAGES[1:], "access": "labels"})
    worst = report.warnings[0]
    assert (worst.code, worst.level) == ("nothing_attacked", "error")
    assert "access to labels" in worst.text
    assert "at most" not in str(report)


def test_none_right_and_guessing_are_told_apart():
    none = fold(records(Run(n=30, clean=0.0)))
    assert none.warnings[0].code == "no_correct_samples"
    assert "no_correct_samples" not in {
        w.code for w in fold(records(Run(n=30, clean=0.3))).warnings
    }
    assert "guessing" in {w.code for w in fold(records(Run(n=60, k=2, clean=0.5))).warnings}
    assert "guessing" not in {w.code for w in fold(records(Run(n=60, clean=0.9))).warnings}


def test_repeated_checks_are_one_finding_and_failures_are_errors():
    random = [
        Finding(code="random_model", level="warning", text=f"Differs by {d}.") for d in (0.1, 2e-05)
    ]
    failure = Failure(where="l2:1", error="ValueError: no")
    report = fold(records(Run(n=20, extra=(*random, failure))))
    assert [w.code for w in report.warnings][:2] == ["failure", "random_model"]
    assert len([w for w in report.warnings if w.code == "random_model"]) == 1


def test_without_a_header_there_is_no_report():
    with pytest.raises(JournalError, match="no header"):
        fold([clean(0)])
    assert isinstance(records(Run(n=1))[0], Header)


def test_unknown_samples_and_threats_are_refused(tmp_path):
    report = report_of(clean(0), attempt(0, 0))
    with pytest.raises(InputError, match="sample 9"):
        report.verdict(9)
    with pytest.raises(InputError, match="linf:9"):
        report.verdict(0, "linf:9")
    with pytest.raises(JournalError, match="directory"):
        report.adversarial()
    with pytest.raises(InputError, match=r"\.pdf"):
        report.save(tmp_path / "report.pdf")
    with pytest.raises(JournalError, match="no run"):
        Report.load(tmp_path)


def test_adversarial_inputs_are_those_of_the_broken_samples(tmp_path):
    report = Report.load(write(Run(n=40, threats=(THREAT, "l2:1"), shape=(1, 6, 6)), tmp_path))
    for threat in (*report.threats, None):
        numbers, x_adv = report.adversarial(threat)
        verdicts = report.verdicts if threat is None else report.threats[threat].verdict
        assert numbers.tolist() == [i for i, v in enumerate(verdicts) if v is Verdict.BROKEN]
        assert x_adv.shape == (len(numbers), 1, 6, 6)
        if threat is not None:
            path = journal.adversarial_path(tmp_path, threat)
            assert torch.equal(x_adv, load_file(path)["x_adv"][numbers])
    (tmp_path / "adversarial-l2-1.safetensors").write_bytes(b"torn")
    with pytest.raises(JournalError, match="Resume"):
        report.adversarial("l2:1")


def test_nothing_broken_leaves_no_adversarial_inputs(tmp_path):
    report = Report.load(write(Run(n=5, falls=(0.0, 0.0), shape=(3, 4)), tmp_path))
    numbers, x_adv = report.adversarial()
    assert torch.equal(numbers, torch.empty(0, dtype=torch.int64))
    assert x_adv.shape == (0, 3, 4)
    assert report.examples(THREAT) == []


def test_examples_come_easiest_first(tmp_path):
    report = Report.load(write(Run(n=60), tmp_path))
    result = report.threats[THREAT]
    sizes = [result.radius[e.row] for e in report.examples(THREAT)]
    assert sizes == sorted(sizes)
    assert len(sizes) == min(24, result.count(Verdict.BROKEN))


def test_frame_has_a_row_per_sample_and_threat():
    pytest.importorskip("pandas")
    report = fold(records(Run(n=30, threats=(THREAT, "l2:1"))))
    frame = report.records
    assert len(frame) == 60
    rate = (frame[frame.threat == THREAT].verdict == "unknown").mean()
    assert rate == pytest.approx(report.threats[THREAT].robust_accuracy.value)


def test_two_audits_of_the_same_samples_are_compared():
    weak, strong = (fold(records(Run(n=200, falls=f))) for f in ((0.6, 0.1), (0.1, 0.0)))
    result = weak.compare(strong)
    assert result.difference > 0
    assert result.p_value < 0.001
    assert weak.compare(weak).p_value == 1.0
    with pytest.raises(InputError, match="different samples"):
        weak.compare(fold(records(Run(n=20))))
