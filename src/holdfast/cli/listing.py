"""``holdfast list``: what there is, made from the cards of the parts themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

Rows = tuple[tuple[str, ...], Iterable[tuple[str, ...]]]


class Kind(StrEnum):
    """What can be listed."""

    ATTACKS = "attacks"
    RECIPES = "recipes"
    THREATS = "threats"
    CASCADES = "cascades"
    DATA = "data"


def listing(
    kind: Annotated[Kind, typer.Argument(help="What to list.", case_sensitive=False)],
) -> None:
    """Show the attacks, recipes, threats, cascades or forms of data that there are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    makers: dict[Kind, Callable[[], Rows]] = {
        Kind.ATTACKS: _attacks,
        Kind.RECIPES: _recipes,
        Kind.THREATS: _threats,
        Kind.CASCADES: _cascades,
        Kind.DATA: _data,
    }
    columns, rows = makers[kind]()
    has_header = kind not in (Kind.ATTACKS, Kind.RECIPES)
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=has_header)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0)
    for row in rows:
        table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
    Console().print(table)


def _attacks() -> Rows:
    from holdfast import registry

    rows = []
    for name, attack in sorted(registry.attacks().items()):
        card = attack.card
        works = f"needs {card.access.value}; works in {', '.join(sorted(card.norms))}"
        rows.append((name, _told(attack, works)))
    return ("attack", "what it does"), rows


def _recipes() -> Rows:
    from holdfast import registry

    rows = []
    for name, recipe in sorted(registry.recipes().items()):
        card = recipe.card
        several = "; against several threats at once" if card.n_threats == 0 else ""
        rows.append((name, _told(recipe, f"works in {', '.join(sorted(card.norms))}{several}")))
    return ("recipe", "what it does"), rows


def _told(part: Any, works: str) -> str:
    """Title, where it works, options with their defaults, and paper: a line each."""
    from dataclasses import MISSING, fields

    options = [f.name if f.default is MISSING else f"{f.name}={f.default}" for f in fields(part)]
    lines = part.card.title, works, f"options: {', '.join(options)}", f"{part.card.paper}\n"
    return "\n".join(lines)


def _threats() -> Rows:
    from holdfast import registry

    return ("threat", "what the attacker may change"), registry.threats().items()


def _cascades() -> Rows:
    from holdfast.plan import cascades, load_cascade

    rows = [
        (name, summary, "\n".join(stage.describe() for stage in load_cascade(name)))
        for name, summary in cascades().items()
    ]
    return ("cascade", "what for", "attacks"), rows


def _data() -> Rows:
    from holdfast.modalities import sources

    return ("form", "what to give to --data"), [(s.name, s.summary) for s in sources()]
