"""The card as one HTML page without scripts."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.hardening import rendering, terminal
from holdfast.hardening.card import HardenCard


def render(card: HardenCard) -> str:
    """The page."""
    rows = []
    if card.before is not None and card.after is not None:
        rows = terminal.rows(card.before, card.after)
    return rendering.render(
        "card.html",
        card=card,
        lead=terminal.lead(card),
        rows=rows,
        cost=terminal.cost(card),
        worse=terminal.worse_lines(card),
        chart=_chart(card),
    )


def _chart(card: HardenCard) -> Markup:
    """Clean and robust validation accuracy over time, as SVG."""
    if len(card.rounds) < 2:
        return Markup()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    seconds = [r.seconds for r in card.rounds]
    axes.plot(seconds, [100 * r.clean for r in card.rounds], label="clean", marker=".")
    axes.plot(seconds, [100 * r.robust for r in card.rounds], label="under attack", marker=".")
    proven = [(r.seconds, 100 * r.verified) for r in card.rounds if r.verified is not None]
    if proven:
        axes.plot(*zip(*proven, strict=True), label="proven by training's bounds", marker=".")
    axes.set(xlabel="seconds of training", ylabel="validation accuracy (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return rendering.svg(figure)
