"""A job: one sample under one attack; and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from holdfast.record import Outcome

NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Job:
    """One sample under one attack, aimed at one class, in one restart.

    Attributes:
        sample: Number of the sample.
        stage: Position of the attack in the cascade.
        target: Class aimed at, or -1.
        restart: 0 for the first.
        max_passes: Passes it may use at most, forward plus backward.
        max_forward: Forward passes it may use at most.
    """

    sample: int
    stage: int
    target: int = -1
    restart: int = 0
    max_passes: int = NO_LIMIT
    max_forward: int = NO_LIMIT


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over.

    Attributes:
        x_adv: The accepted adversarial input on the CPU; None where there is none.
        best: The allowed point of largest margin, if the slots keep it; on the device.
        distance: Size of the accepted change in the threat's units.
    """

    job: Job
    outcome: Outcome
    forward: int
    backward: int
    margin: float
    loss: float
    confidence: float
    rejected: int
    zero_gradients: int
    prediction: int = -1
    prediction_confidence: float = 0.0
    distance: float | None = None
    x_adv: Tensor | None = None
    best: Tensor | None = None
    best_score: float = -math.inf
