"""What got worse: per class and group, under corruptions, in calibration; seen and told."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import hardening_tools as small
import numpy as np
import pytest
import torch
from torch import nn

from holdfast.data import ArrayData
from holdfast.engine.random import Rng
from holdfast.hardening import auditing, corruptions, price
from holdfast.hardening.harden import harden
from holdfast.hardening.page import render
from holdfast.model import Model

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


@dataclass
class Audit:
    """As much of a report as the comparison reads."""

    is_correct: list
    confidence: float = 0.9
    y: list = field(default_factory=lambda: [0] * 20 + [1] * 20)

    @property
    def samples(self):
        confident = np.full(len(self.y), self.confidence)
        return Samples(self.y, self.is_correct, confident)

    def class_name(self, label):
        return f"<{label}>"


class Samples(SimpleNamespace):
    def __init__(self, y, is_correct, confident):
        super().__init__(y=y, is_correct=is_correct, confidence_predicted=confident)

    def __len__(self):
        return len(self.y)


def test_the_class_group_and_corruption_that_paid_are_named():
    before, after = Audit([True] * 40), Audit([True] * 20 + [False] * 10 + [True] * 10)
    right, wrong = [True] * 40, [False] * 20 + [True] * 20
    lost = price.worse(
        before,
        after,
        ["a", "b"] * 20,
        ({"blur": right, "noise": wrong}, {"blur": wrong, "noise": right}),
    )
    found = {w.what: w for w in lost}
    assert found["clean accuracy"].after == 0.75
    assert found["clean accuracy of class <1>"].after == 0.5
    assert "clean accuracy of class <0>" not in found
    assert found["clean accuracy of group a"].n == 20
    assert found["accuracy under corruption by blur"].after == 0.5
    assert found["accuracy under corruption by blur"].is_sure
    assert "accuracy under corruption by noise" not in found  # it got better
    assert [w.before - w.after for w in lost[:3]] == sorted(
        [w.before - w.after for w in lost[:3]], reverse=True
    )


def test_calibration_is_measured_bin_by_bin():
    """Half are right, of ten at 0.95 and of ten at 0.15: too sure there, too modest here."""
    confidence = np.array([0.95] * 10 + [0.15] * 10)
    report = SimpleNamespace(samples=Samples([0] * 20, [True, False] * 10, confidence))
    assert price.calibration_error(report) == pytest.approx((4.5 + 3.5) / 20)


def test_calibration_that_got_worse_is_told():
    sure = Audit([True] * 36 + [False] * 4, confidence=0.9)
    shy = Audit([True] * 36 + [False] * 4, confidence=0.4)
    assert price.calibration_error(sure) == pytest.approx(0.0, abs=1e-9)
    assert price.calibration_error(shy) == pytest.approx(0.5)
    assert [w.what for w in price.worse(sure, shy)] == ["calibration error"]
    assert price.worse(shy, sure) == []


# ---------------------------------------------------------------------- corruptions


def corrupted(name, x):
    return corruptions.kinds(tuple(x.shape[1:]))[name](x, ZERO, ONE, Rng(torch.arange(len(x))))


def test_each_corruption_is_what_it_says():
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.25
    assert float((corrupted("noise", x) - x).std()) == pytest.approx(0.1, rel=0.05)
    jumped = corrupted("impulses", x) != x
    assert float(jumped.float().mean()) == pytest.approx(0.05, abs=0.01)
    assert set(corrupted("impulses", x)[jumped].tolist()) == {0.0, 1.0}
    torch.testing.assert_close(corrupted("brightness", x), x + 0.2)
    faint = corrupted("low contrast", x).flatten(1)
    torch.testing.assert_close(faint.mean(1), x.flatten(1).mean(1))
    torch.testing.assert_close(faint.std(1), 0.5 * x.flatten(1).std(1))
    blurred = corrupted("blur", x)
    inner = x[:, :, 0:3, 0:3] * torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    torch.testing.assert_close(blurred[:, 0, 1, 1], inner.sum((1, 2, 3)))
    torch.testing.assert_close(corrupted("blur", torch.full_like(x, 0.3)), torch.full_like(x, 0.3))


def test_tables_are_not_blurred():
    assert set(corruptions.kinds((9,))) == {"noise", "impulses"}
    assert "blur" in corruptions.kinds((3, 32, 32))


def test_a_model_that_reads_brightness_fails_under_it_alone():
    """Dark images are class 0, bright ones class 1: shifting the brightness turns class 0."""
    x = torch.cat([torch.full((50, 1, 8, 8), 0.4), torch.full((50, 1, 8, 8), 0.6)])
    data = ArrayData(x, torch.arange(100) // 50)

    class Brightness(nn.Module):
        def forward(self, x):
            z = x.flatten(1).mean(1) - 0.5
            return torch.stack([-z, z], 1)

    model = Model(Brightness())
    found = {k: np.mean(v) for k, v in corruptions.answers(model, data, 100).items()}
    assert found["brightness"] == 0.5
    assert {found[k] for k in ("noise", "impulses", "blur", "low contrast")} == {1.0}
    assert len(corruptions.answers(model, data, 30)["blur"]) == 30


def test_the_card_shows_all_that_got_worse(tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "CASCADE", "quick")
    result = harden(
        small.fitted(6),
        small.digits(500),
        threat=small.THREAT,
        recipe="pgd_training(attack=pgd(steps=2))",
        epochs=2,
        test=small.digits(part="test"),
        n_audit=40,
        groups=["odd", "even"] * 20,
        out=tmp_path,
    )
    card = result.card
    assert card.before is not None
    assert card.after is not None
    names = set(corruptions.kinds((1, 8, 8)))
    assert set(card.before.corrupted) == set(card.after.corrupted) == names
    x, y = small.digits(part="test").fetch(range(40))
    with torch.no_grad():
        right = result.module(corrupted("low contrast", x)).argmax(1) == y
    assert card.after.corrupted["low contrast"] == pytest.approx(float(right.float().mean()))
    for told in (str(card), render(card)):
        assert "with low contrast" in told
        assert "calibration error" in told
        assert "What got worse" in told or not card.worse
    assert all(w.what in render(card) for w in card.worse)
