"""One forward pass serves the clean measurement and the first attack's gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driving import finish, plan, result
from torch import nn

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.fgsm import FGSM
from holdfast.data import ArrayData
from holdfast.engine import journal, opening
from holdfast.engine.cascade import Step
from holdfast.engine.journal import RowFile
from holdfast.engine.run import run
from holdfast.model import Model
from holdfast.record import Attempt, Clean, Finding, Session

FIRST = {"attack": "fgsm", "loss": "margin"}
STAGES = (FIRST, {"attack": "pgd", "steps": 5}, {"attack": "square", "queries": 20})


class Watching(nn.Module):
    """A network with other logits where gradients are recorded."""

    def __init__(self, net: nn.Module, gain: float) -> None:
        super().__init__()
        self.net, self.gain = net, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.net(x) if torch.is_grad_enabled() else self.net(x)


def spent(directory) -> tuple[int, int, int, int]:
    """Forward and backward passes of clean records, then of attempts at the first stage."""
    records = journal.read(directory)
    clean = [r for r in records if isinstance(r, Clean)]
    first = [r for r in records if isinstance(r, Attempt) and r.stage == 0]
    return (
        sum(r.forward for r in clean),
        sum(r.backward for r in clean),
        sum(r.forward for r in first),
        sum(r.backward for r in first),
    )


def stripped(found: dict) -> dict:
    """Without passes: outcomes, margins and bytes."""
    jobs = {
        key: {job: (outcome, margin) for job, (outcome, _, _, margin) in one["jobs"].items()}
        for key, one in found.items()
    }
    return {key: (jobs[key], one.get("x_adv")) for key, one in found.items()}


@pytest.fixture(scope="module")
def apart(digits, tmp_path_factory):
    """The run with a forward pass for each of the two."""
    directory = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FGSM, "opening", property(lambda _: None))
        finish(plan(stages=STAGES), *digits, directory)
    return directory


@pytest.fixture(scope="module")
def shared(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shared")
    finish(plan(stages=STAGES), *digits, directory)
    return directory


def test_one_forward_pass_less_and_the_same_bytes(apart, shared):
    records = [r for r in journal.read(shared) if isinstance(r, Clean)]
    n, n_right = len(records), sum(r.prediction == r.y for r in records)
    forward, unused, first, gradients = spent(apart)
    assert (forward, unused, gradients) == (n, 0, n_right)
    assert spent(shared) == (n, n - n_right, first - n_right, n_right)
    assert stripped(result(shared)) == stripped(result(apart))


def test_the_session_counts_what_the_records_say(apart, shared):
    """The checks before both runs are alike, so the totals differ by the passes saved."""
    totals = []
    for directory in (apart, shared):
        records = journal.read(directory)
        (session,) = (r for r in records if isinstance(r, Session))
        told = [r for r in records if isinstance(r, Clean | Attempt)]
        curve = sum(getattr(r, "forward", 0) for r in records if r.kind == "radius")
        looks = [r for r in records if r.kind == "examined"]
        totals.append(
            (
                session.passes_forward - sum(r.forward for r in [*told, *looks]) - curve,
                session.passes_backward - sum(r.backward for r in [*told, *looks]),
            )
        )
    assert totals[0] == totals[1]


@pytest.mark.parametrize("stop_after", [2, 4, 30])
def test_a_run_that_goes_on_has_the_same_gradients(digits, shared, tmp_path, stop_after):
    events = run(plan(stages=STAGES, batch_size=4), Model(digits[0]), digits[1], tmp_path)
    for _ in range(stop_after):
        next(events, None)
    events.close()
    finish(plan(stages=STAGES, batch_size=64), *digits, tmp_path)
    assert result(tmp_path) == result(shared)
    assert not (tmp_path / "opening.safetensors").exists()


def test_a_lost_file_is_paid_for_again(digits, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_path", lambda context: tmp_path / "nowhere" / "file")
    monkeypatch.setattr(opening.Opening, "write", lambda self, context, rows, g, right: right)
    finish(plan(stages=STAGES), *digits, tmp_path)
    assert stripped(result(tmp_path)) == stripped(result(shared))
    assert spent(tmp_path)[2] > spent(shared)[2]


def test_rows_of_zeros_are_asked_for_again(digits, apart, tmp_path, monkeypatch):
    """Gradients that vanish, or that a crash of the machine lost, must not count as known."""
    write = RowFile.write

    def half(self, rows, values):
        if self.path.name == "opening.safetensors":
            values = torch.where(torch.arange(len(rows))[:, None, None, None] % 2 > 0, values, 0.0)
        write(self, rows, values)

    monkeypatch.setattr(RowFile, "write", half)
    finish(plan(stages=STAGES), *digits, tmp_path)
    assert stripped(result(tmp_path)) == stripped(result(apart))


def test_workers_are_told_the_gradients(digits, shared, tmp_path):
    finish(plan(stages=STAGES, workers=2), *digits, tmp_path)
    assert result(tmp_path) == result(shared)


def test_another_attack_or_stage_has_no_first_gradient_here(tmp_path):
    first, other = FGSM(loss="margin"), FGSM(loss="ce")
    (tmp_path / "opening.safetensors").touch()
    context: Any = SimpleNamespace(journal=SimpleNamespace(directory=tmp_path))
    known = opening.Opening("linf:0.1", first, goal_margin)
    for threat, step in (
        ("linf:0.1", Step(0, "", other)),
        ("linf:0.1", Step(1, "", first)),
        ("linf:0.2", Step(0, "", first)),
    ):
        assert known.read(context, threat, step, [0]) is None


@pytest.fixture
def never(monkeypatch):
    def fail(*_):
        raise AssertionError("the clean pass took gradients")

    monkeypatch.setattr(opening.Opening, "write", fail)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": STAGES[1:]},
        {"stages": ({**FIRST, "share": 0.5}, *STAGES[1:])},
        {"stages": ({**FIRST, "n_targets": 3}, *STAGES[1:])},
        {"target": "runner_up", "stages": STAGES},
        {"precision": "bf16", "stages": STAGES},
    ],
)
def test_only_where_every_sample_begins_so(digits, tmp_path, options, never):
    few = ArrayData(*digits[1].fetch(range(12)))
    finish(plan(**options), digits[0], few, tmp_path)


def test_a_model_that_answers_otherwise_with_gradients_is_told(digits, tmp_path, never):
    few = ArrayData(*digits[1].fetch(range(12)))
    finish(plan(stages=STAGES), Watching(digits[0], gain=-1.0), few, tmp_path)
    records = journal.read(tmp_path)
    told = [r for r in records if isinstance(r, Finding)]
    assert "answers_with_gradients_differ" in {r.code for r in told}
    right = digits[0](few.fetch(range(12))[0]).argmax(1) == few.fetch(range(12))[1]
    assert [r.prediction == r.y for r in records if isinstance(r, Clean)] == right.tolist()


def test_a_model_that_rounds_otherwise_with_gradients_is_asked_twice(digits, tmp_path, never):
    few = ArrayData(*digits[1].fetch(range(12)))
    finish(plan(stages=STAGES), Watching(digits[0], gain=1 + 1e-6), few, tmp_path)
    records = journal.read(tmp_path)
    codes = {r.code for r in records if isinstance(r, Finding)}
    assert "answers_with_gradients_differ" not in codes


def test_an_undefended_sample_costs_four_passes(tmp_path):
    """Forward and backward at x, forward at the change, and the judge alone."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    finish(plan(threats=("linf:1.0",), stages=STAGES), net, ArrayData(x, y), tmp_path)
    assert spent(tmp_path) == (40, 0, 80, 40)
