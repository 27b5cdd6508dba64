import html as html_module
import json as json_module
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import STAGES, Run, records, write

from holdfast.errors import JournalError
from holdfast.reports import _charts, _pictures, html, json
from holdfast.reports.fold import fold
from holdfast.reports.report import Report
from holdfast.reports.results import Curve

EVIL = '<script>alert("x")</script>&'
CASES = {
    "plain": Run(n=60),
    "union": Run(
        n=60,
        shape=(3, 16, 16),
        threats=("linf:8/255", "l2:0.5", "l1:12", "l0:20"),
        n_finished=40,
        outcome="budget",
    ),
    "table": Run(n=50, k=2, shape=(30,), class_names=("benign", "malignant")),
    "series": Run(n=20, shape=(1, 400)),
    "many classes": Run(n=80, k=1000, shape=(3, 12, 12), class_names=()),
    "large pictures": Run(n=10, shape=(3, 230, 230)),
    "targeted": Run(n=40, plan={"target": "least_likely"}),
    "targeted at one": Run(n=40, plan={"target": 3}),
    "scores": Run(n=40, plan={"access": "scores", "stages": STAGES[1:]}),
    "labels": Run(n=40, plan={"access": "labels"}, model={"head": "labels", "access": "labels"}),
    "random": Run(n=40, model={"is_random": True}),
    "none right": Run(n=30, clean=0.0),
    "nothing broken": Run(n=30, clean=1.0, falls=(0.0, 0.0)),
    "all broken": Run(n=30, clean=1.0, falls=(1.0,)),
    "one sample": Run(n=1, clean=1.0),
    "eps zero": Run(n=20, threats=("linf:0",), falls=(0.0, 0.0)),
    "per-feature domain": Run(n=20, model={"domain": "per feature, within [0, 9]"}),
    "hostile names": Run(n=60, class_names=(EVIL,) * 10, model={"description": EVIL}),
}


class Page(HTMLParser):
    """What a strict reader sees: tags closed in order, ids, references, text."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.images, self.tags = [], [], [], [], []
        self.headings, self.cells = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href", "action")]
        self.images += [values] if tag == "img" or values.get("role") == "img" else []
        self.cells += [values] if tag == "th" else []
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module", params=CASES, ids=str)
def saved(request, tmp_path_factory):
    directory = write(CASES[request.param], tmp_path_factory.mktemp("run"))
    report = Report.load(directory)
    return report, report.save(directory / "report.html").read_text(encoding="utf-8")


def test_page_is_whole_and_alone(saved):
    _, text = saved
    page = Page(text)
    inside = set(page.ids)
    assert len(page.ids) == len(inside), "ids occur twice"
    outside = [link for link in page.links if not link.startswith(("data:image/png", "#"))]
    assert outside == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= inside
    assert set(re.findall(r"url\((?!#)[^)]*\)", text)) == set()
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= inside
    assert "script" not in page.tags
    assert page.tags.count("style") == 1


def test_page_is_accessible(saved):
    _, text = saved
    page = Page(text)
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)
    assert all(cell.get("scope") in ("row", "col") for cell in page.cells)
    steps = np.diff(page.headings)
    assert page.headings[0] == 1
    assert (steps <= 1).all(), "a heading level is skipped"


def test_page_says_the_result(saved):
    report, text = saved
    words = html_module.unescape(re.sub(r"<[^>]+>", " ", text))
    assert report.command in words
    assert report.plan_id in words
    for sentence in ("What was tried, and what is not known", "not proven safe"):
        assert sentence in words
    if report.clean_accuracy.k and report.robust_accuracy.k:
        assert f"at most {100 * report.robust_accuracy.value:.1f}%" in words
    for finding in report.warnings:
        assert finding.text in words


def test_names_of_users_cannot_become_markup(saved):
    _, text = saved
    assert "<script" not in text
    assert "None" not in re.sub(r"<[^>]+>", "", text)


def test_terminal_and_notebook_say_the_same(saved):
    report, text = saved
    terminal = " ".join(str(report).split())
    first = re.search(r'<section class="lead".*?<p>(.*?)</p>', text, re.DOTALL)
    assert first is not None
    assert html_module.unescape(first[1]) in terminal
    assert first[1] in Page(report._repr_html_()).rawdata or first[1] in report._repr_html_()


def test_json_returns_the_same_report(saved):
    report, _ = saved
    text = json.render(report)
    assert json.load(text) == report
    assert json.render(json.load(text)) == text
    document = json_module.loads(text)
    summary = document["summary"]
    assert summary["robust_accuracy"]["k"] == report.robust_accuracy.k
    for name, result in report.threats.items():
        card = document["robustbench"][name]
        assert card["eps"] == name.partition(":")[2]
        if result.is_attacked:
            assert float(card["autoattack_acc"]) == pytest.approx(
                100 * result.robust_accuracy.value, abs=0.005
            )


@pytest.mark.parametrize(("plan", "model"), [("gradients", "scores"), ("scores", "gradients")])
def test_access_is_what_both_plan_and_model_give(plan, model):
    run = Run(n=10, plan={"access": plan, "stages": STAGES[1:]}, model={"access": model})
    report = fold(records(run))
    assert report.access == "scores"
    assert "sees the model&#39;s scores" in html.render(report)


@pytest.mark.parametrize("suffix", [".html", ".json", ".txt", ".HTML"])
def test_files_are_found_by_suffix(tmp_path, suffix):
    report = Report.load(write(Run(n=20), tmp_path))
    path = report.save(tmp_path / "new" / f"report{suffix}")
    assert path.stat().st_size > 100
    if suffix == ".json":
        assert Report.load(path) == report
        assert Report.load(path).examples("linf:0.3") == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": "holdfast.report", "version": 99}', "\x00"]
)
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(JournalError, match=re.escape(str(path))):
        Report.load(path)


def test_damaged_json_names_the_field():
    document = json_module.loads(json.render(fold(records(Run(n=3)))))
    del document["report"]["samples"]
    with pytest.raises(JournalError, match="samples"):
        json.load(json_module.dumps(document))


def test_reports_differ_where_the_runs_do():
    assert fold(records(Run(n=20))) != fold(records(Run(n=20, seed=1)))
    assert fold(records(Run(n=20))) != "a report"


def test_same_run_same_bytes(tmp_path):
    report = Report.load(write(Run(n=20), tmp_path))
    first, second = (report.save(tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_charts_leave_matplotlib_alone_and_ignore_its_settings():
    curve = Curve(*(np.array([0.0, 0.5]) for _ in range(4)))
    plain = _charts.curve(curve, "size", "alt")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert _charts.curve(curve, "size", "alt") == plain
        assert dict(matplotlib.rcParams) == before
    assert not re.search(r"#[0-9a-f]{6}|<style|DejaVu", plain)


@given(st.floats(1e-6, 2.0), st.integers(0, 3))
def test_differences_are_amplified_as_far_as_they_stay_visible(size, seed):
    x = np.random.default_rng(seed).uniform(0, 1, (1, 8, 8)).astype(np.float32)
    changed = x.copy()
    changed[0, 3, 3] += size
    triple = _pictures.triple(x, changed, (0.0, 1.0))
    assert triple is not None
    assert triple.factor == 1 or triple.factor * size <= 1.01
    assert triple.factor >= 1000 or triple.factor * size > 1 / 3.1


@pytest.mark.parametrize(
    ("shape", "colours"),
    [
        ((1, 28, 28), 1),
        ((3, 32, 32), 3),
        ((32, 32, 3), 3),
        ((28, 28), 1),
        ((30,), None),
        ((1, 400), None),
        ((7, 9, 9), None),
        ((3, 3, 9, 9), None),
    ],
)
def test_layout_tells_pictures_from_tables(shape, colours):
    kind = _pictures.layout(shape)
    assert (kind.n_colours if kind else None) == colours
    x = np.zeros(shape, np.float32)
    assert (_pictures.triple(x, x, (0, 1)) is None) == (colours is None)


def test_most_changed_features_come_first():
    x, x_adv = np.zeros((2, 3), np.float32), np.array([[0, 0.5, 0], [-2, 0, 0.1]], np.float32)
    changes = _pictures.most_changed(x, x_adv, 2)
    assert [c.place for c in changes] == ["1, 0", "0, 1"]
    assert changes[0].after == -2.0
