"""The one way in which a contract speaks."""

from __future__ import annotations


class ContractViolation(AssertionError):
    """A method does not keep a contract; the message says what was expected and what was seen.

    An ``AssertionError``, so that test runners show a failed test rather than an error in one.
    """


def require(is_kept: bool, message: str) -> None:
    """Raise :class:`ContractViolation` with ``message`` unless ``is_kept``."""
    if not is_kept:
        raise ContractViolation(message)
