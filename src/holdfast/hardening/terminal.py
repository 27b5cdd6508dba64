"""The card on a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from holdfast.hardening.card import Accuracy, HardenCard, Side

_WORSE_SHOWN = 6


def text(card: HardenCard) -> str:
    """The card as plain text."""
    out = StringIO()
    Console(file=out, width=100, color_system=None).print(summary(card))
    return out.getvalue()


def summary(card: HardenCard) -> ConsoleRenderable:
    """Before and after, the price, the warnings, how to repeat it."""
    parts: list[ConsoleRenderable] = [Text(lead(card), style="bold"), Text("")]
    if card.after is not None:
        parts += [_table(card), Text(f"Audited on {card.audited_on}.", style="dim"), Text("")]
    parts.append(Text(cost(card)))
    if card.worse:
        parts += [Text(""), Text("What got worse", style="bold")]
        parts += [Text(f"  {line}") for line in worse_lines(card)[:_WORSE_SHOWN]]
    for finding in card.warnings:
        style = "yellow" if finding.level == "warning" else ""
        parts.append(Text.assemble((f"{finding.level.capitalize()}: ", style), finding.text))
    if card.model_path:
        parts += [Text(""), Text(f"The hardened model: {card.model_path}")]
    parts.append(Text(f"Repeat it:  {card.command}"))
    return Group(*parts)


def lead(card: HardenCard) -> str:
    """The result in a sentence or two."""
    if card.before is None or card.after is None:
        return f"Trained with {card.recipe_at_end}; no audit was asked for."
    said = []
    for threat, after in card.after.robust.items():
        before = card.before.robust[threat]
        said.append(f"{before.value:.1%} -> {after.value:.1%} under {threat}")
    lost = card.clean_lost or 0.0
    clean = f"{card.before.clean.value:.1%} -> {card.after.clean.value:.1%}"
    word = "price" if lost > 0 else "clean accuracy"
    return f"Robust accuracy: {'; '.join(said)}. The {word}, without attack: {clean}."


def cost(card: HardenCard) -> str:
    """What was spent."""
    energy = "" if card.energy_kj is None else f", {card.energy_kj:.1f} kJ (whole processor)"
    return (
        f"{card.recipe_at_end}: {card.epochs:.1f} epochs, {card.updates:,} updates, "
        f"{card.passes:,.0f} passes in {card.training_seconds:.0f} s of training "
        f"({card.seconds:.0f} s in all), {card.peak_memory_mb:.0f} MB{energy}."
    )


def worse_lines(card: HardenCard) -> list[str]:
    """What got worse, one line each."""
    lines = []
    for w in card.worse:
        sure = ", perhaps chance" if w.is_sure is False else ""
        lines.append(f"{w.what}: {w.before:.1%} -> {w.after:.1%} (n={w.n}{sure})")
    return lines


def _table(card: HardenCard) -> Table:
    assert card.before is not None
    assert card.after is not None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "before", "after"):
        table.add_column(name)
    for name, before, after in rows(card.before, card.after):
        table.add_row(name, before, after)
    return table


def rows(before: Side, after: Side) -> list[tuple[str, str, str]]:
    """The comparison, line by line."""
    found = [("clean accuracy", str(before.clean), str(after.clean))]
    for threat, accuracy in after.robust.items():
        found.append((f"robust, {threat}", str(before.robust[threat]), str(accuracy)))
    for threat in after.verified or before.verified:
        pair = (_known(before.verified.get(threat)), _known(after.verified.get(threat)))
        found.append((f"verified, {threat}", *pair))
    errors = (f"{before.calibration_error:.1%}", f"{after.calibration_error:.1%}")
    found.append(("calibration error", *errors))
    for kind, value in after.corrupted.items():
        found.append((f"with {kind}", f"{before.corrupted.get(kind, 0):.1%}", f"{value:.1%}"))
    if before.n_unfinished or after.n_unfinished:
        found.append(("not finished", str(before.n_unfinished), str(after.n_unfinished)))
    return found


def _known(value: Accuracy | None) -> str:
    return "none" if value is None else str(value)
