"""What the page says of trust where nothing was left to probe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.evaluation.statistics import Rate
from holdfast.reports._trust import Confidence, Trust
from holdfast.reports._trust_words import headline


@pytest.mark.parametrize(("n_proven", "words"), [(0, "was broken,"), (7, "was broken or proven,")])
def test_samples_that_are_proven_are_not_called_broken(n_proven: int, words: str):
    result: Any = SimpleNamespace(
        trust=Trust(Confidence.TRUSTED, n_probed=0), verified_accuracy=Rate.of(n_proven, 10)
    )
    assert words in headline(SimpleNamespace(), result)  # type: ignore[arg-type]
