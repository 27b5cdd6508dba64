"""Checks shared by the options of attacks."""

from __future__ import annotations

from holdfast.errors import PlanError


def require_at_least(attack: str, **options: tuple[float, float]) -> None:
    """Refuse options below their smallest sensible value: ``name=(value, smallest)``.

    Raises:
        PlanError: naming the option, the value seen and the smallest allowed.
    """
    for name, (value, smallest) in options.items():
        if not value >= smallest:
            raise PlanError(f"{attack}: {name} is {value}; it must be at least {smallest}.")
