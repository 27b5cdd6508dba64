"""``report``, ``list``, ``demo``, ``--version`` and the start-up."""

import subprocess
import sys

import pytest

from holdfast import __version__, registry
from holdfast.cli.display import duration


def test_report_writes_and_prints_again(audit, cli, home):
    assert audit("--n", "8", "--out", "run").exit_code == 0
    for name in ("report.html", "report.json"):
        (home / "run" / name).unlink()
    result = cli("report", "run")
    assert result.exit_code == 0, result.output
    assert (home / "run/report.html").is_file()
    assert (home / "run/report.json").is_file()
    result = cli("report", "run", "--out", "deep/page.html")
    assert result.exit_code == 0, result.output
    assert (home / "deep/page.html").is_file()
    assert "Written: deep/page.html" in result.stdout


def test_report_of_nothing_is_told(cli):
    result = cli("report", "nowhere")
    assert result.exit_code == 4
    assert "There is no report in nowhere" in result.stderr


def test_lists(cli):
    for kind, words in {
        "attacks": [*registry.attacks(), "gradients"],
        "threats": ["linf", "l2", "l1", "l0", "8/255"],
        "cascades": ["standard", "quick", "apgd"],
        "data": ["folder", "npz", "idx", "table", "digits"],
    }.items():
        result = cli("list", kind)
        assert result.exit_code == 0, result.output
        assert all(word in result.stdout for word in words), kind
    assert cli("list", "colours").exit_code == 2


def test_version_and_help(cli):
    assert cli("--version").stdout.strip() == f"holdfast {__version__}"
    for words in ([], ["audit"], ["verify"], ["check"], ["report"], ["list"], ["demo"]):
        result = cli(*words, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout


def test_help_starts_without_torch():
    code = "import sys, holdfast.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_demo_trains_audits_and_writes_a_page(cli, home, monkeypatch):
    import holdfast.demo as demo

    monkeypatch.setattr(demo, "_EPOCHS", 3)
    monkeypatch.setattr(demo, "N_SAMPLES", 12)
    monkeypatch.setattr(demo, "CASCADE", "short.toml")
    result = cli("demo")
    assert result.exit_code == 0, result.output
    assert "digits it has not seen" in result.stdout
    page = (home / "report.html").read_text()
    assert page == (home / "holdfast-demo/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page.replace("https://www.w3.org", "")
    again = cli("demo")
    assert again.exit_code == 0, again.output
    assert "already done" not in again.stdout
    result = cli("audit", "holdfast-demo/plan.toml", "--out", "again", "--json")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_whole_demo(cli, home):
    result = cli("demo", "--out", "tour")
    assert result.exit_code == 0, result.output
    assert (home / "report.html").is_file()


def test_the_demo_network_is_the_same_every_time():
    import torch

    from holdfast.demo import train
    from holdfast.modalities import load

    x, y = load("digits", n=200).fetch(range(200))
    state = torch.random.get_rng_state()
    first, second = train(x, y, seed=3).state_dict(), train(x, y, seed=3).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = train(x, y, seed=4).state_dict()
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (185, "3:05 min"), (3723, "1:02:03 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
