"""What a check is: it looks at some unbroken samples and says whether attacks were misled there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from holdfast.trust.probe import Probe

EARLY, LATE = 0, 1
"""Rounds: after the attacks that follow the model's gradients, and after all others."""


@dataclass(frozen=True, slots=True)
class CheckCard:
    """What documentation and engine need to know of a check.

    Attributes:
        name: The module's name.
        title: What it looks for, in plain words.
        paper: Where it comes from.
        round: When it is made: :data:`EARLY` or :data:`LATE`.
        is_cause: Whether it finds what misleads attackers, rather than a sign that something does.
        needs_samples: Whether it runs the model on unbroken samples; else the records are enough.
    """

    name: str
    title: str
    paper: str
    round: int = EARLY
    is_cause: bool = False
    needs_samples: bool = True


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a check found.

    Attributes:
        text: One clause that can follow "because".
        figures: What was measured.
        remedies: Routes worth trying, as :func:`holdfast.trust.routes.route` reads them.
        stages: Stages that it speaks of; empty: all that follow the model's own gradients.
    """

    text: str
    figures: dict[str, float]
    remedies: tuple[dict[str, Any], ...] = ()
    stages: tuple[int, ...] = ()


class Check(ABC):
    """The interface of every check; concrete ones are final frozen dataclasses of thresholds."""

    __slots__ = ()

    card: ClassVar[CheckCard]

    @abstractmethod
    def look(self, probe: Probe) -> Doubt | None:
        """What is wrong; None where nothing is."""
