"""Finding what exists: one file per method, found by its module name or a package entry point.

A plug-in package announces its methods under the entry-point groups ``holdfast.attacks``,
``holdfast.defenses`` and ``holdfast.perturbations``; nothing has to be registered by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import PlanError, ThreatError

if TYPE_CHECKING:
    from holdfast.attacks.base import Attack
    from holdfast.defenses.base import Recipe
    from holdfast.trust.base import Check


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
    return _with_cards("holdfast.attacks")


@cache
def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by name: those of :mod:`holdfast.defenses`, then those of plug-ins."""
    return _with_cards("holdfast.defenses")


def _with_cards(package: str) -> dict[str, type[Any]]:
    """The classes of a package that have a card of their own, and those of plug-ins."""
    found: list[Any] = []
    for module in _modules(package):
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and "card" in vars(value):
                found.append(value)
    found += _plugins(package)
    return {kind.card.name: kind for kind in found}


@cache
def checks() -> dict[str, type[Check]]:
    """Every check by name: those of :mod:`holdfast.trust`, then those of plug-ins."""
    return _with_cards("holdfast.trust")


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
    return _made("attack", attacks(), name, options)


def recipe(name: str, **options: Any) -> Recipe:
    """The recipe called ``name`` with these options.

    Raises:
        PlanError: for an unknown recipe or option; the message lists what exists.
    """
    return _made("recipe", recipes(), name, options)


def _made(what: str, kinds: Mapping[str, type[Any]], name: str, options: dict[str, Any]) -> Any:
    kind = kinds.get(name)
    if kind is None:
        raise PlanError(f"Unknown {what} {name!r}. Available: {', '.join(kinds)}.")
    known = {field.name: field for field in fields(cast("Any", kind))}
    for option in options:
        if option not in known:
            raise PlanError(
                f"The {what} {name!r} has no option {option!r}. Its options: {', '.join(known)}."
            )
    try:
        return kind(**options)
    except TypeError as error:
        raise PlanError(f"The options {options} do not fit the {what} {name!r}: {error}") from None
