import pytest
from synthetic import Run, records

from holdfast.record import Verdict
from holdfast.reports import _words
from holdfast.reports.fold import fold


def lead(**changes):
    report = fold(records(Run(n=60, **changes)))
    return report, _words.lead(report)


@pytest.mark.parametrize(
    ("threat", "shape", "words"),
    [
        ("linf:8/255", (3, 9, 9), "change every pixel by at most 8/255 (3.1% of its range)"),
        ("linf:0.05", (30,), "change every feature by at most 0.05 (5% of its range)"),
        ("l2:0.5", (1, 9, 9), "change the input by at most 0.5 in total"),
        ("l1:12", (1, 9, 9), "change the input by at most 12 in total"),
        ("l0:20", (1, 9, 9), "change any 20 pixels to anything"),
        ("l0:20", (3, 9, 9), "change any 20 single colour values to anything"),
    ],
)
def test_first_sentence_counts_what_was_broken(threat, shape, words):
    report, sentences = lead(threats=(threat,), shape=shape)
    broken = report.threats[threat].count(Verdict.BROKEN)
    assert 0 < broken < report.clean_accuracy.k
    assert sentences[0].startswith(f"An attacker who may {words}")
    whole = f"{broken} of the {report.clean_accuracy.k} samples that the model gets right."
    assert sentences[0].endswith(f"changes the answer for {whole}")


def test_several_threats_begin_with_all_of_them():
    report, sentences = lead(threats=("linf:0.3", "l2:1"))
    broken = report.verdicts.count(Verdict.BROKEN)
    assert sentences[0].startswith("An attacker who can choose among 2 kinds of change")
    assert f" {broken} of the {report.clean_accuracy.k} samples" in sentences[0]


def test_the_bound_names_rate_and_interval():
    report, sentences = lead()
    rate = report.robust_accuracy
    bound = sentences[1]
    assert f"right on {rate.k} of 60 samples" in bound
    for value in (rate.value, rate.lower, rate.upper):
        assert f"{100 * value:.1f}%" in bound


def test_what_a_targeted_attacker_wants_is_said():
    assert "answer “three”" in lead(plan={"target": 3})[1][0]
    assert "lowest score" in lead(plan={"target": "least_likely"})[1][0]


def test_an_early_end_is_said_in_the_lead():
    report, sentences = lead(n_finished=10)
    assert any(f"{report.n_unfinished} samples did not get all" in text for text in sentences)
    assert not any("ended early" in text for text in lead()[1])


@pytest.mark.parametrize(("value", "text"), [(0.5, "50.0%"), (float("nan"), "–"), (1.0, "100.0%")])
def test_percentages(value, text):
    assert _words.percent(value) == text


@pytest.mark.parametrize(
    ("n", "text"), [(3, "3"), (12345, "12,345"), (1.25, "1.2"), (250.5, "250")]
)
def test_numbers(n, text):
    assert _words.number(n) == text


def test_sizes_are_written_as_the_user_wrote_the_threat():
    in_255ths = fold(records(Run(n=9, threats=("linf:8/255",)))).threats["linf:8/255"]
    assert _words.change_size(in_255ths, 4 / 255) == "4/255"
    plain = fold(records(Run(n=9))).threats["linf:0.3"]
    assert _words.size_of_example(plain, 0.3, 0.3) == "Size of the change: 0.3 (linf)."
    assert _words.size_of_example(plain, 0.3, 0.1) == (
        "Size of the change: 0.3; 0.1 (linf) is enough."
    )
