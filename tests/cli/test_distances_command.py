"""``holdfast distances``: smallest changes from the command line."""

import json

import numpy as np
import pytest


@pytest.fixture
def distances(cli):
    return lambda *options: cli("distances", "cli_zoo:Net", "--data", "data.npz", *options)


def test_the_page_the_figures_and_the_changed_inputs(distances, home):
    options = ("--n", "8", "--budget", "60", "--norm", "linf", "--norm", "l0", "--out", "d")
    result = distances(*options)
    assert result.exit_code == 0, result.output
    assert "half of the samples fall to a linf change of" in result.stdout
    content = json.loads((home / "d/distances.json").read_text())
    assert [part["norm"] for part in content["norms"]] == ["linf", "l0"]
    page = (home / "d/distances.html").read_text()
    for part in content["norms"]:
        assert part["n"] == 8
        assert f"{part['median']:.4g}" in page
        with np.load(home / f"d/changed-{part['norm']}.npz") as kept:
            sizes = [part["distances"][i] for i in kept["sample"]]
            assert len(kept["x_adv"]) == len(sizes) > 0
            assert all(sizes)
    assert page.count("<svg") == 2
    assert "<script" not in page


def test_l2_if_nothing_else_is_said(distances, home):
    assert distances("--n", "4", "--budget", "40", "--out", "d").exit_code == 0
    assert (home / "d/changed-l2.npz").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--norm", "l7"), "l7"), (("--budget", "3"), "at least 40"), (("--n", "0"), "--n")],
)
def test_bad_input_is_told(distances, options, says):
    result = distances(*options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_no_model_is_told(cli):
    result = cli("distances", "--data", "data.npz")
    assert result.exit_code == 2
    assert "Which model?" in result.stderr
