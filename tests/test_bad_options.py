"""Options that cannot be used are told in our words, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks.pgd import PGD
from holdfast.errors import DataError, InputError, ModelError, PlanError, ThreatError
from holdfast.plan import load_cascade

NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = NET(X).argmax(1)


def _audit(threat: Any = "linf:0.1", **options: Any) -> Callable[[], Any]:
    return lambda: holdfast.audit(NET, (X, Y), threat, **options)


def _bounds(x: torch.Tensor, **options: Any) -> Callable[[], Any]:
    return lambda: holdfast.bounds(NET, x, "linf:0.1", **options)


def _stage(**content: Any) -> Callable[[], Any]:
    return _audit(cascade=[{"attack": "fgsm"}, {"attack": "pgd"} | content])


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (_stage(start="worst"), PlanError, r"(?s)^Stage 2 of the cascade .*start.*'best'.*'worst'"),
        (_stage(when="never"), PlanError, r"(?s)^Stage 2 .*when.*'found'.*'never'"),
        (_stage(within=-1), PlanError, r"(?s)^Stage 2 .*within.*greater than 0.*-1"),
        (_stage(access=["gradient"]), PlanError, r"(?s)^Stage 2 .*'gradients', 'scores' or"),
        (_stage(norms=["linff"]), PlanError, r"^Stage 2 .*\(pgd\).*'linff'.*l0, l1, l2, linf"),
        (_stage(steps="a"), PlanError, r"pgd: steps is 'a'; .*at least 1"),
        (_audit(cascade=[3]), PlanError, r"(?s)^Stage 1 of the cascade.*dictionary.*seen: 3"),
        (_audit(cascade=3), PlanError, r"^3 is no cascade.*quick, standard.*TOML"),
        (_audit(cascade=[]), PlanError, r"^\[\] is no cascade"),
        (_audit(workers=0), PlanError, r"(?s)^The options .*workers.*equal to 1.*seen: 0"),
        (_audit(seed="a"), PlanError, r"(?s)seed: .*integer.*seen: 'a'"),
        (_audit(budget=10), PlanError, r"^Cannot read the budget '10'. Write a time \(90s"),
        (_audit(n=0), PlanError, r"(?s)n: .*greater than 0 \(seen: 0\)"),
        (_audit(trust="no"), PlanError, r"(?s)trust: .*'act', 'reroute', 'look' or 'off'.*'no'"),
        (_audit(precision="f8"), PlanError, r"(?s)precision: .*'bf16'.*'f8'"),
        (_audit(target="worst"), PlanError, r"(?s)target: Unknown target 'worst'.*runner_up"),
        (_audit(access="gradient"), PlanError, r"'gradient'.*gradients, scores, labels"),
        (_audit(threat=3), ThreatError, r"^3 is no threat.*linf:8/255"),
        (_audit(threat=["l2:1", 3]), ThreatError, r"^3 is no threat"),
        (
            _audit(device="gpu"),
            ModelError,
            r"^The device 'gpu' cannot be used here. Avail",
        ),
        (lambda: holdfast.Budget(passes=-3), PlanError, r"(?s)^Budget\(.*passes: .*than 0.*: -3"),
        (
            lambda: holdfast.Budget(hours=1),  # type: ignore[call-arg]
            PlanError,
            r"hours: .*Allowed: seconds, passes, queries \(seen: 1\)",
        ),
        (lambda: holdfast.Plan(threats=()), PlanError, r"(?s)^Plan\(.*threats: .*at least 1"),
        (
            lambda: holdfast.Plan(threats=("l2:1",), budget={"passes": 0}),  # type: ignore[arg-type]
            PlanError,
            r"(?s)^Plan\(.*\n  budget.passes: .*greater than 0 \(seen: 0\)$",
        ),
        (lambda: holdfast.Model(NET, access="all"), PlanError, r"'all'.*gradients, scores, labels"),
        (lambda: holdfast.Model(NET, batch_size=0), ModelError, r"batch_size is 0; .*at least 1"),
        (_bounds(X, method="cron"), PlanError, r"'cron'.*crown"),
        (_bounds(2 * X), DataError, r"outside their domain"),
        (lambda: holdfast.smooth(NET, sigma=-1), PlanError, r"sigma must be positive.*-1"),
    ],
)
def test_a_bad_option_says_what_was_seen_and_what_is_allowed(
    call: Callable[[], Any], kind: type[InputError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"n_audit": 0}, "n_audit is 0"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"epochs": "a"}, "number of epochs is 'a'"),
        ({"epochs": None, "budget": 3}, "Cannot read the budget '3'.*90s"),
        ({"recipe": 3}, "^3 is no recipe"),
        ({"threat": 3}, "^3 is no threat"),
        ({"threat": []}, "No threat was given"),
        ({"batch_size": -4}, r"(?s)settings.*batch_size.*-4"),
    ],
)
def test_a_hardening_with_a_bad_option_never_begins(
    option: dict[str, Any], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given: dict[str, Any] = {"threat": "linf:0.1", "epochs": 1} | option
    with pytest.raises(InputError, match=says):
        holdfast.harden(NET, (X, Y), out=out, **given)
    assert not out.exists()


def test_numbers_of_numpy_are_numbers() -> None:
    attack = PGD(steps=np.int64(3), step_size=np.float32(0.1))  # type: ignore[arg-type]
    assert attack.steps == 3


def test_a_plan_file_with_an_unknown_entry_hears_which_there_are() -> None:
    with pytest.raises(PlanError, match=r"data\.form: .*Allowed: source, label, n \(seen: 'csv'\)"):
        holdfast.Plan.from_toml('threats = ["l2:1"]\n[data]\nform = "csv"')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[stage]]\nattack = 'pgd'\nwhen = 'never'", r"(?s)^Stage 1 of the cascade .*'never'"),
        ("summary = 'nothing'", r"has no stages.*\[\[stage\]\]"),
        ("[[stage", r"is not valid TOML"),
    ],
)
def test_a_cascade_file_that_cannot_be_used(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=says):
        load_cascade(str(path))
