"""What the page says of trust where nothing was left to probe."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.evaluation.statistics import Rate
from holdfast.reports._trust import Confidence, Trust
from holdfast.reports._trust_words import headline


@pytest.mark.parametrize(("n_proven", "words"), [(0, "was broken,"), (7, "was broken or proven,")])
def test_samples_that_are_proven_are_not_called_broken(n_proven: int, words: str):
    result: Any = SimpleNamespace(
        trust=Trust(Confidence.TRUSTED, n_probed=0), verified_accuracy=Rate.of(n_proven, 10)
    )
    assert words in headline(SimpleNamespace(), result)  # type: ignore[arg-type]


class Rounded(nn.Module):
    """Zero gradients, so that gradient attacks break nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.round(4 * x) / 4)


@pytest.mark.parametrize(("is_rounded", "words"), [(False, "was not checked"), (True, "^Don't")])
def test_a_handful_that_nothing_broke_is_not_called_broken(
    is_rounded: bool, words: str, tmp_path: Path
):
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    net = Rounded(linear) if is_rounded else linear
    with torch.no_grad():
        y = net(x).argmax(1)
    report = holdfast.audit(net, (x, y), "linf:0.0001", cascade="quick", verify="off")
    said = headline(report, report.threats["linf:0.0001"])
    assert re.search(words, said)
    assert "too few" in said
    page = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "too few" in page


def test_where_nothing_was_attacked_there_is_nothing_to_trust(tmp_path: Path):
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        y = (net(x).argmax(1) + 1) % 4
    report = holdfast.audit(net, (x, y), "linf:0.1", cascade="quick", verify="off")
    assert headline(report, report.threats["linf:0.1"]) == ""
    page = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Can these figures be trusted" not in page
