"""Finding what exists: one file per method, found by its module name or a package entry point.

A plug-in package announces its methods under the entry-point groups ``holdfast.attacks`` and
``holdfast.perturbations``; nothing has to be registered by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import PlanError, ThreatError

if TYPE_CHECKING:
    from holdfast.attacks.base import Attack


def _modules(package: str) -> list[ModuleType]:
    """The public modules of a package of this project."""
    parent = importlib.import_module(package)
    names = [m.name for m in pkgutil.iter_modules(parent.__path__) if not m.name.startswith("_")]
    return [importlib.import_module(f"{package}.{name}") for name in sorted(names)]


def _plugins(group: str) -> list[Any]:
    return [point.load() for point in entry_points(group=group)]


@cache
def attacks() -> dict[str, type[Attack]]:
    """Every attack by name: those of :mod:`holdfast.attacks`, then those of plug-ins."""
    found: list[type[Attack]] = []
    for module in _modules("holdfast.attacks"):
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and "card" in vars(value):
                found.append(value)
    found += _plugins("holdfast.attacks")
    return {attack.card.name: attack for attack in found}


@cache
def _perturbations() -> dict[str, Any]:
    found: list[Any] = []
    for module in _modules("holdfast.perturbations"):
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and "names" in vars(value):
                found.append(value)
    found += _plugins("holdfast.perturbations")
    return {name: threat for threat in found for name in threat.names}


def threats() -> dict[str, str]:
    """Every threat that can be written as text: its name and what it allows."""
    classes = dict.fromkeys(_perturbations().values())
    return {name: text for threat in classes for name, text in threat.summary.items()}


def perturbation(name: str) -> Any:
    """The class of threats called ``name``.

    Raises:
        ThreatError: where there is none; the message lists those that exist.
    """
    found = _perturbations().get(name)
    if found is None:
        known = "\n".join(f"  {key}: {text}" for key, text in threats().items())
        raise ThreatError(f"Unknown threat {name!r}. Write one of:\n{known}")
    return found


def attack(name: str, **options: Any) -> Attack:
    """The attack called ``name`` with these options.

    Raises:
        PlanError: for an unknown attack or option; the message lists what exists.
    """
    kind = attacks().get(name)
    if kind is None:
        raise PlanError(f"Unknown attack {name!r}. Available: {', '.join(attacks())}.")
    known = {field.name: field for field in fields(cast("Any", kind))}
    for option in options:
        if option not in known:
            raise PlanError(
                f"The attack {name!r} has no option {option!r}. Its options: {', '.join(known)}."
            )
    try:
        return kind(**options)
    except TypeError as error:
        raise PlanError(f"The options {options} do not fit the attack {name!r}: {error}") from None
