"""Steps whose derivative is zero or undefined: rounding, signs, thresholds, choices, casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe
from holdfast.trust.routes import route
from holdfast.trust.softened import words

WIDTHS = (1.0, 0.25, 0.06, 0.015)
"""Of the smooth steps that are tried: where units compete, wide ones let too many pass."""


@final
@dataclass(frozen=True)
class HardSteps(Check):
    """Watches one forward pass for such steps, and keeps those that the gradient hangs on.

    A step counts only if the gradient of the margin changes when the step is given a smooth
    backward pass: a rounding that no score depends on is none of an attacker's business.

    Attributes:
        change: Of the gradient, relative to both together, from which on a step counts.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="hard_steps",
        title="steps without a useful derivative inside the model",
        paper="Athalye, Carlini and Wagner (2018), arXiv:1802.00420; on sparsified activations "
        "Amini et al. (2024), arXiv:2406.05927",
        is_cause=True,
    )

    change: float = 0.01

    def look(self, probe: Probe) -> Doubt | None:
        """The steps that occur, then those that matter."""
        operators = guilty(probe, self.change)
        if not operators or probe.trace.n_inner_gradients:
            return None
        text = f"the model contains {words(operators)}, whose gradient is zero, undefined or beside"
        text += " the point"
        remedies = tuple(straight_through(operators, width) for width in WIDTHS)
        return Doubt(text, {"n_steps": float(len(operators))}, remedies)


def straight_through(operators: tuple[str, ...], width: float = 0.25) -> dict[str, Any]:
    """The route through these operators."""
    return {"name": "straight_through", "operators": list(operators), "width": width}


def guilty(probe: Probe, change: float) -> tuple[str, ...]:
    """The steps without which the gradient would be another; found one kind at a time."""
    few = probe.few(8)
    own = few.gradients_at(few.x)
    found = []
    for operator in probe.trace.operators:
        smooth = few.gradients_at(few.x, route(**straight_through((operator,))))
        if _differ(own, smooth, change):
            found.append(operator)
    together = few.gradients_at(few.x, route(**straight_through(probe.trace.operators)))
    if not found and probe.trace.operators and _differ(own, together, change):
        return probe.trace.operators  # one behind the other: each alone still hides the gradient
    return tuple(found)


def _differ(own: Tensor, smooth: Tensor, change: float) -> bool:
    a, b = own.flatten(1), smooth.flatten(1)
    size = a.norm(dim=1) + b.norm(dim=1)
    share = (a - b).norm(dim=1) / size.clamp_min(1e-30)
    return bool(share.mean() > change)
