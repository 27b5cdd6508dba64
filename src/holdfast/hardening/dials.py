"""What a frontier varies: an option of the recipe, a setting of the training, or what it may cost.

A dial has a few values (``beta=1,3,6``, ``recipe=pgd_training|trades(beta=3)``) or a range
(``beta=0.5..12``, ``epochs=2..20``), which a tuner searches.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.defenses.base import Recipe
from holdfast.errors import PlanError
from holdfast.hardening.asking import Ask
from holdfast.hardening.recipe_text import parse_recipe
from holdfast.hardening.settings import Settings
from holdfast.plan import Budget

_LOG_FROM = 8.0  # ranges whose ends differ by more are searched by their logarithm
COSTS = ("budget", "epochs")
_EXAMPLE = (
    "Write a list (beta=1,3,6), a range (beta=0.5..12), or recipes (recipe=pgd_training|mart)."
)


@dataclass(frozen=True, slots=True)
class Dial:
    """Something to vary.

    Attributes:
        name: ``recipe``, ``budget``, ``epochs``, a setting, or an option of the recipe.
        values: The values to try; empty for a range.
        low: Least value of a range.
        high: Largest value of a range.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan

    @property
    def is_integer(self) -> bool:
        """Whether a range holds whole numbers only: both ends are written without a point."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def is_log(self) -> bool:
        """Whether a range is even in its logarithm."""
        return self.low > 0 and self.high / self.low > _LOG_FROM

    def spread(self, n: int) -> list[Any]:
        """``n`` even values of a range, both ends among them."""
        shares = [i / (n - 1) for i in range(n)] if n > 1 else [0.5]
        if self.is_log:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            values = [self.low + share * (self.high - self.low) for share in shares]
        values[-1] = min(values[-1], self.high)
        return list(dict.fromkeys(round(v) for v in values)) if self.is_integer else values


def parse_dial(text: str) -> Dial:
    """A dial from ``name=values``.

    Raises:
        PlanError: for what cannot be read.
    """
    name, is_pair, given = (part.strip() for part in text.partition("="))
    if not is_pair or not name or not given:
        raise PlanError(f"Cannot read --vary {text!r}. {_EXAMPLE}")
    if ".." in given and "|" not in given:
        low, high = (_number(part, text) for part in given.split("..", 1))
        if not low < high:
            raise PlanError(f"The range {given!r} of {name} is empty: give the smaller end first.")
        return Dial(name, low=low, high=high)
    parts = [p.strip() for p in given.split("|" if "|" in given or name == "recipe" else ",")]
    if not all(parts):
        raise PlanError(f"Cannot read --vary {text!r}. {_EXAMPLE}")
    return Dial(name, values=tuple(dict.fromkeys(_literal(part) for part in parts)))


def as_dial(name: str, given: Any) -> Dial:
    """A dial from Python: a text as on the command line, or a sequence of values."""
    if isinstance(given, str):
        return parse_dial(f"{name}={given}")
    values = tuple(v.describe() if isinstance(v, Recipe) else v for v in given)
    if not values:
        raise PlanError(f"No values of {name} were given to vary.")
    return Dial(name, values=values)


def _number(text: str, whole: str) -> float:
    value = _literal(text.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PlanError(f"Cannot read --vary {whole!r}: {text!r} is no number. {_EXAMPLE}")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# ---------------------------------------------------------------------- turning them


def turned(ask: Ask, values: Mapping[str, Any]) -> Ask:
    """The hardening with these values; the recipe first, as the others may be options of it.

    Raises:
        PlanError: for a name that nothing has.
    """
    for name in sorted(values, key=lambda n: n != "recipe"):
        ask = _turn(ask, name, values[name])
    return ask


def _turn(ask: Ask, name: str, value: Any) -> Ask:
    if name == "recipe":
        return replace(ask, recipe=parse_recipe(str(value)))
    if name == "budget":
        seconds = Budget.parse(str(value)).seconds
        return replace(ask, seconds=seconds, epochs=None)
    if name == "epochs":
        return replace(ask, epochs=float(value), seconds=None)
    if name in Settings.model_fields:
        return replace(ask, settings={**ask.settings, name: value})
    changed = None if ask.recipe is None else _with_option(ask.recipe, name, value)
    if changed is None:
        raise PlanError(_unknown(ask, name))
    return replace(ask, recipe=changed)


def _with_option(owner: Any, name: str, value: Any) -> Any:
    """A recipe or attack with one option changed, wherever inside it lies; None: nowhere."""
    names = [field.name for field in fields(owner)]
    if name in names:
        return replace(owner, **{name: value})
    for part in names:
        inner = getattr(owner, part)
        if isinstance(inner, (Recipe, Attack)):
            changed = _with_option(inner, name, value)
            if changed is not None:
                return replace(owner, **{part: changed})
    return None


def _unknown(ask: Ask, name: str) -> str:
    own = "no recipe was named" if ask.recipe is None else ask.recipe.describe()
    settings = ", ".join(Settings.model_fields)
    return (
        f"Nothing is called {name!r}. To vary: recipe, budget, epochs, an option of the recipe "
        f"({own}), or a setting ({settings})."
    )


def check(ask: Ask, dials: Sequence[Dial]) -> None:
    """Turn every dial to all its values or ends once, so that errors come before the training.

    Raises:
        PlanError: where a name or a value does not fit.
    """
    if len({dial.name for dial in dials}) < len(dials):
        raise PlanError("A name is varied twice. Give each --vary once, with all its values.")
    recipes = next((d.values for d in dials if d.name == "recipe"), (None,))
    for recipe in recipes:
        start = ask if recipe is None else turned(ask, {"recipe": recipe})
        for dial in dials:
            for value in dial.values or (dial.low, dial.high):
                turned(start, {dial.name: value})
