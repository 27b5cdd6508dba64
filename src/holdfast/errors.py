"""What can go wrong, as a tree.

::

    HoldfastError
    ├── InputError (also a ValueError)   something given cannot be used
    │   ├── ModelError                   the model: its file, its outputs, its access
    │   ├── DataError                    the data: its file, range, labels, shape
    │   ├── ThreatError                  the threat: its text, its radius, its norm
    │   └── PlanError                    the plan: unknown attack, option, cascade, budget
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
