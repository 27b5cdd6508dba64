"""What the contracts of attacks and of recipes share: names, and violations that say where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.contracts._violation import ContractViolation


@dataclass(frozen=True, slots=True)
class Named:
    """A check with a name: ``check`` raises ``ContractViolation``."""

    check: Callable[[Any, str], None]

    @property
    def name(self) -> str:
        """The name of the check."""
        return self.check.__name__

    @property
    def summary(self) -> str:
        """What must hold, in a line."""
        return (self.check.__doc__ or "").strip().splitlines()[0]


class Checked(ABC):
    """A contract with what is held to it; ``str()`` says both."""

    __slots__ = ()

    @abstractmethod
    def _check(self) -> None:
        """Raise where the contract is not kept, or where it cannot even be tried."""

    def check(self) -> None:
        """Raise ``ContractViolation`` where the contract is not kept."""
        try:
            self._check()
        except ContractViolation as violation:
            raise ContractViolation(f"{self}: {violation}") from violation
        except Exception as error:
            raise ContractViolation(f"{self}: {type(error).__name__}: {error}") from error


def check_all(cases: Iterable[Checked]) -> None:
    """Check every case.

    Raises:
        ContractViolation: with one line for each contract that is not kept.
    """
    found: list[str] = []
    for case in cases:
        try:
            case.check()
        except ContractViolation as violation:
            found.append(str(violation))
    if found:
        raise ContractViolation("\n".join(found))
