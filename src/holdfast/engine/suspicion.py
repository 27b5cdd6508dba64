"""What the attempts themselves say about how far the number can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from holdfast.engine.cascade import Step
from holdfast.engine.ledger import Standing
from holdfast.record import Finding
from holdfast.threat import Access, Threat

FAIR_CHANCE = 20
"""Gradients followed in vain before it counts that a search without them broke a sample."""


def suspicions(
    threat: Threat, steps: Sequence[Step], standing: Standing, is_correct: np.ndarray
) -> Iterator[Finding]:
    """Findings on one threat after all its attacks."""
    n, name = max(1, int(is_correct.sum())), threat.describe()
    if not standing.looks:  # else the checks of holdfast.trust have seen to it
        yield from _masked(threat, steps, standing, n)
    for text, code in (
        (_refused(standing, n), "claims_refused"),
        (_still_falling(steps, standing, n), "still_falling"),
    ):
        if text:
            yield Finding(code=code, level="warning", text=text, threat=name)


def _masked(threat: Threat, steps: Sequence[Step], standing: Standing, n: int) -> Iterator[Finding]:
    for text, code in (
        (_score_beats_gradient(threat, steps, standing, n), "scores_beat_gradients"),
        (_zero_gradients(standing), "zero_gradients_in_search"),
    ):
        if text:
            yield Finding(code=code, level="warning", text=text, threat=threat.describe())


def _score_beats_gradient(threat: Threat, steps: Sequence[Step], standing: Standing, n: int) -> str:
    """An attack that sees less should never find more, unless changes are large as in l0."""
    if threat.norm == "l0" or all(s.attack.card.sees_less for s in steps):
        return ""
    count = n_beyond_gradients(steps, standing)
    if count < max(2, 0.003 * n):
        return ""
    return (
        f"Searching without gradients broke {count} samples ({count / n:.1%}) that all attacks "
        "which follow gradients had missed. The model's gradients mislead attackers (gradient "
        "masking), so the true robust accuracy is probably lower still."
    )


def n_beyond_gradients(steps: Sequence[Step], standing: Standing) -> int:
    """Samples broken by attacks that see less, after those that follow gradients had failed.

    An attack that both searches and follows gradients says something only where gradients had a
    fair chance before.
    """
    weak = [s for s in steps if s.attack.card.sees_less]
    both = [s.stage for s in weak if s.attack.card.access is Access.GRADIENTS]
    is_early = np.isin(standing.broken_by, both) & (standing.followed < FAIR_CHANCE)
    return int((np.isin(standing.broken_by, [s.stage for s in weak]) & ~is_early).sum())


def _zero_gradients(standing: Standing) -> str:
    total = int(standing.backward.sum())
    share = standing.zero_gradients.sum() / max(1, total)
    if share < 0.1:
        return ""
    return (
        f"{share:.0%} of all gradients met during the attacks were zero or not finite. Gradient "
        "attacks were often blind: the robust accuracy may be too high."
    )


def _refused(standing: Standing, n: int) -> str:
    count = int(((standing.rejected > 0) & ~standing.is_broken).sum())
    if count < max(2, 0.01 * n):
        return ""
    return (
        f"On {count} samples an attack fooled the model once, but not again when the input was "
        "replayed. They were counted as not broken. The model's answers near them are unstable."
    )


def _still_falling(steps: Sequence[Step], standing: Standing, n: int) -> str:
    count = int((standing.broken_by == steps[-1].stage).sum())
    if len(steps) < 2 or count < max(3, 0.02 * n):
        return ""
    return (
        f"The last attack, {steps[-1].label}, still broke {count} samples ({count / n:.1%}). A "
        "longer cascade would probably find more."
    )
