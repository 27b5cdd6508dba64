"""Recipes as text: ``trades(beta=6)``, ``awp(recipe=trades(), gamma=0.005)``, ``pgd_training``."""

from __future__ import annotations

import ast
from typing import Any

from holdfast import registry
from holdfast.defenses.base import Recipe
from holdfast.errors import PlanError


def parse_recipe(text: str) -> Recipe:
    """The recipe that a text names; inside its options, names are attacks and recipes.

    Raises:
        PlanError: for unknown names and options, and what is no such text.
    """
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _unreadable(text) from None
    value = _value(node, text)
    if not isinstance(value, Recipe):
        raise PlanError(f"{text!r} is no recipe. Available: auto, {', '.join(registry.recipes())}.")
    return value


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return _made(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        options = {str(k.arg): _value(k.value, text) for k in node.keywords if k.arg is not None}
        inner = [_value(argument, text) for argument in node.args]
        if len(inner) > 1 or len(options) != len(node.keywords):
            raise _unreadable(text)
        return _made(node.func.id, ({"recipe": inner[0]} if inner else {}) | options)
    if isinstance(node, ast.Tuple):
        return tuple(_value(part, text) for part in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _unreadable(text) from None


def _made(name: str, options: dict[str, Any]) -> Any:
    """An attack or a recipe; recipes first, as no name is both."""
    if name in registry.recipes():
        return registry.recipe(name, **options)
    if name in registry.attacks():
        return registry.attack(name, **options)
    raise PlanError(f"Unknown recipe {name!r}. Available: auto, {', '.join(registry.recipes())}.")


def _unreadable(text: str) -> PlanError:
    return PlanError(
        f"Cannot read the recipe {text!r}. Write a name, or a name with options: trades, "
        "trades(beta=3), awp(trades(), gamma=0.005)."
    )
