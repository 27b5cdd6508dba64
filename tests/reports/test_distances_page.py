"""The page of smallest changes, from figures written by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from holdfast.evaluation.distances import MinimalDistances
from holdfast.reports import distances

SIZES = [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.25, math.inf, math.inf, math.inf, 0.75, 1.5]


@pytest.fixture
def found():
    n = len(SIZES)
    names = ["clean" if s == 0 else "fmn" if s < math.inf else "" for s in SIZES]
    passes = torch.full((n,), 7)
    x_adv = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 3)
    size = torch.tensor(SIZES, dtype=torch.float64)
    return MinimalDistances("l2", size, x_adv, tuple(names), passes, passes)


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_changed_inputs_belong_to_their_samples(found, tmp_path):
    distances.write(tmp_path, "net", "data", [found])
    with np.load(tmp_path / "changed-l2.npz") as kept:
        assert kept["sample"].tolist() == [5, 6, 10, 11]
        assert kept["x_adv"][:, 0].tolist() == [5.0, 6.0, 10.0, 11.0]


def test_who_withstood_and_what_quarters_fall_to(found):
    part = distances._part(found)
    assert part["n_withstood"] == 3
    assert part["quarters"] == ["0", "0.25", "1.5"]  # of all twelve, the wrong ones among them
    assert part["median"] == 0.25


def test_no_quarter_is_told_that_was_not_reached(found):
    few = torch.tensor([0.5, math.inf, math.inf, math.inf, math.inf], dtype=torch.float64)
    rest = (("fmn", "", "", "", ""), torch.ones(5), torch.ones(5))
    part = distances._part(MinimalDistances("l2", few, torch.zeros(5, 3), *rest))
    assert part["quarters"] == []
    assert part["median"] is None


def test_the_most_fragile_are_listed_however_many_were_wrong_before(found):
    assert [row[:2] for row in distances._part(found)["fragile"]] == [
        (6, "0.25"),
        (5, "0.5"),
        (10, "0.75"),
        (11, "1.5"),
    ]
    page = text_of(distances.render("net", "data", [found]))
    assert "0.25" in page
    assert "1.5" in page
