"""Optimisation inside the model: gradients that it takes itself, loops of changing length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.hard_steps import guilty, straight_through
from holdfast.trust.probe import Probe


@final
@dataclass(frozen=True)
class InnerSolver(Check):
    """Watches two forward passes: does the model call autograd, and is each pass equally long?

    Attributes:
        change: As in :class:`~holdfast.trust.hard_steps.HardSteps`.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="inner_solver",
        title="an optimisation, or a loop of changing length, inside the forward pass",
        paper="Croce et al. (2022), Evaluating the adversarial robustness of adaptive test-time "
        "defenses, arXiv:2202.13711",
        is_cause=True,
    )

    change: float = 0.01

    def look(self, probe: Probe) -> Doubt | None:
        """What the passes consisted of."""
        trace = probe.trace
        first, second = trace.n_calls
        if not trace.n_inner_gradients and first == second:
            return None
        if trace.n_inner_gradients:
            text = (
                f"the model optimises inside its forward pass ({trace.n_inner_gradients} gradients "
                "of its own), which the attacker's gradient does not follow"
            )
        else:
            text = (
                "the model's forward pass is of changing length "
                f"({first} calls for some inputs, {second} for others)"
            )
        operators = guilty(probe, self.change)
        remedies = (straight_through(operators),) if operators else ()
        figures = {"n_inner_gradients": float(trace.n_inner_gradients), "n_calls": float(first)}
        return Doubt(text, figures, (*remedies, {"name": "surrogate"}))
