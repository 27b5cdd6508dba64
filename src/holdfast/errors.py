"""What can go wrong, as a tree.

::

    HoldfastError
    ├── InputError (also a ValueError)   something given cannot be used
    │   ├── ModelError                   the model: its file, its outputs, its access
    │   ├── DataError                    the data: its file, range, labels, shape
    │   ├── ThreatError                  the threat: its text, its radius, its norm
    │   ├── PlanError                    the plan: unknown attack, option, cascade, budget
    │   ├── GraphError                   the network cannot become a graph that has bounds
    │   │   └── UnsupportedOperatorError   one of its operators has none
    │   ├── PropertyError                the property: its text, or its fit to the network
    │   └── CertificateError             the proof: its file, or what proofs do not cover
    ├── ModelCrash                       the model raised in the middle of a run
    ├── JournalError                     the journal cannot be read, written or resumed
    ├── PrerequisiteError                an optional package is missing
    └── SoundnessError                   a result contradicts another one: a bug in Holdfast

Every message names the value seen, the values allowed and the next step. The command line prints
the message without a traceback and exits with the class's ``exit_code``.
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Base of every error that Holdfast raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(HoldfastError, ValueError):
    """Something given by the user cannot be used."""

    exit_code: ClassVar[int] = 2


class ModelError(InputError):
    """The model cannot be loaded, or does not behave as a classifier."""


class DataError(InputError):
    """The data cannot be read, or does not fit the model or its domain."""


class ThreatError(InputError):
    """The threat is not understood, or makes no sense for this domain."""


class PlanError(InputError):
    """The plan names something that does not exist or cannot be done."""


class GraphError(InputError):
    """A network cannot be brought into a graph, or a graph is used in a way it cannot serve."""


class UnsupportedOperatorError(GraphError):
    """An operator has no bounds; names the operator, its place in the model and a way out."""

    def __init__(self, operator: str, place: str, advice: str = "") -> None:
        self.operator, self.place = operator, place
        advice = advice or (
            "Replace it by supported operators, or add one file to holdfast/graphs/operators "
            "with its run, interval and relaxation."
        )
        super().__init__(f"operator {operator!r} at {place!r} is not supported. {advice}")


class PropertyError(InputError):
    """A property cannot be read or does not fit the network it is asked of.

    Attributes:
        line: line of the text where the trouble starts, from 1; 0 when it has no place.
        column: column in that line, from 1; 0 when it has no place.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        self.line, self.column = line, column
        super().__init__(f"line {line}, column {column}: {message}" if line else message)


class CertificateError(InputError):
    """A proof file, its network or its property cannot be used for checking."""


class ModelCrash(HoldfastError):
    """The model raised while the audit was running; what was found so far is in the journal."""

    exit_code: ClassVar[int] = 3


class JournalError(HoldfastError):
    """The journal cannot be read, written or resumed."""

    exit_code: ClassVar[int] = 4


class PrerequisiteError(HoldfastError, ImportError):
    """An optional package is missing; the message holds the line that installs it."""

    exit_code: ClassVar[int] = 5


class SoundnessError(HoldfastError):
    """Two results contradict each other. This is a bug in Holdfast, never a footnote."""

    exit_code: ClassVar[int] = 70
