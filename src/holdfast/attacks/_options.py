"""Checks shared by the options of attacks."""

from __future__ import annotations

from holdfast.errors import PlanError


def require_at_least(attack: str, **options: tuple[float, float]) -> None:
    """Refuse options below their smallest sensible value: ``name=(value, smallest)``.

    Raises:
        PlanError: naming the option, the value seen and the smallest allowed.
    """
    for name, (value, smallest) in options.items():
        try:
            fits = bool(value >= smallest)
        except TypeError:  # no number
            fits = False
        if not fits:
            raise PlanError(f"{attack}: {name} is {value!r}; it must be at least {smallest}.")


def require_schedule(attack: str, queries: int, restarts: int, p_init: float) -> None:
    """Refuse a random search that cannot run; ``p_init`` is the share that its first steps change.

    Raises:
        PlanError: naming the options seen and what is allowed.
    """
    if queries < 1 or restarts < 1 or not 0 < p_init <= 1:
        raise PlanError(
            f"{attack} cannot run with queries={queries}, restarts={restarts}, p_init={p_init}. "
            "Give at least one query and restart, and 0 < p_init <= 1."
        )
