"""The frontier as text and as one HTML page without scripts, with the picture."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.hardening import rendering
from holdfast.hardening.card import Side
from holdfast.hardening.frontier import Frontier, Point

_SIZE = (7.0, 4.2)
_NOTE = (
    "* no other point is better in one thing and worse in none. Accuracies are on the validation "
    "samples."
)
_LABELLED = 12  # more labels than that hide the points


def text(frontier: Frontier) -> str:
    """One line per point, the best ones first and marked."""
    lines = [lead(frontier), ""]
    names = ("", *frontier.varied, "clean", "under attack", "training")
    rows = [names, *(_cells(p) for p in in_order(frontier))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    lines += ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines += ["", _NOTE]
    lines += [_failed(p) for p in frontier.points if p.failure]
    if frontier.before is not None:
        lines += ["", f"Audited under the standard cascade on {frontier.audited_on}:"]
        lines.append(f"  as it came: {audit_line(frontier.before)}")
        lines += [f"  {settings(p)}: {audit_line(p.audit)}" for p in frontier.efficient if p.audit]
    return "\n".join(lines)


def lead(frontier: Frontier) -> str:
    """The range that there is to choose from, in a sentence."""
    best = frontier.efficient
    if not best:
        return "No hardening came to an end."
    first, last = best[0], max(best, key=lambda p: p.robust)
    if len(best) == 1:
        return (
            f"One point is best in everything: {settings(first)}, {first.clean:.1%} clean and "
            f"{first.robust:.1%} under attack."
        )
    return (
        f"{len(best)} of {len(frontier.points)} points are worth choosing from: from "
        f"{first.clean:.1%} clean and {first.robust:.1%} under attack ({settings(first)}) to "
        f"{last.clean:.1%} and {last.robust:.1%} ({settings(last)})."
    )


def in_order(frontier: Frontier) -> list[Point]:
    """The points that have a result: the best first, by clean accuracy."""
    return sorted((p for p in frontier.points if not p.failure), key=lambda p: -p.clean)


def settings(point: Point) -> str:
    """What was varied, as text."""
    return ", ".join(f"{name}={value(v)}" for name, v in point.values.items())


def value(given: object) -> str:
    """A value, numbers with three digits."""
    return f"{given:.3g}" if isinstance(given, float) else f"{given}"


def audit_line(side: Side) -> str:
    """One audit in a line."""
    robust = "; ".join(f"{t}: {a}" for t, a in side.robust.items())
    return f"clean {side.clean}, robust at most {robust}"


def _cells(point: Point) -> tuple[str, ...]:
    return (
        "*" if point.is_efficient else "",
        *(value(v) for v in point.values.values()),
        f"{point.clean:.1%}",
        f"{point.robust:.1%}",
        f"{point.seconds:.0f} s",
    )


def _failed(point: Point) -> str:
    return f"Failed: {settings(point)}: {point.failure}"


# ---------------------------------------------------------------------- the page


def render(frontier: Frontier) -> str:
    """The page."""
    return rendering.render(
        "frontier.html",
        frontier=frontier,
        lead=lead(frontier),
        rows=[(p, _cells(p)) for p in in_order(frontier)],
        failures=[_failed(p) for p in frontier.points if p.failure],
        audits=_audits(frontier),
        chart=chart(frontier),
    )


def _audits(frontier: Frontier) -> list[tuple[str, Side]]:
    sides = [("as it came", frontier.before)]
    sides += [(settings(p), p.audit) for p in frontier.efficient]
    return [(name, side) for name, side in sides if side is not None]


def chart(frontier: Frontier) -> Markup:
    """Clean against robust accuracy, larger marks for longer training, as SVG."""
    points = in_order(frontier)
    if not points:
        return Markup()
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    longest = max(p.seconds for p in points) or 1.0
    best = [p for p in points if p.is_efficient]
    axes.plot(_percent(best, "clean"), _percent(best, "robust"), color="#1f6f8b", linewidth=1.2)
    for name, chosen, colour in (
        ("worth choosing from", best, "#1f6f8b"),
        ("beaten by another", [p for p in points if not p.is_efficient], "#b0b0b0"),
    ):
        sizes = [30 + 90 * p.seconds / longest for p in chosen]
        x, y = _percent(chosen, "clean"), _percent(chosen, "robust")
        axes.scatter(x, y, s=sizes, color=colour, label=name, zorder=3)
    for point in best if len(points) > _LABELLED else points:
        place = (100 * point.clean, 100 * point.robust)
        axes.annotate(settings(point), place, xytext=(6, 6), textcoords="offset points", size=8)
    axes.set(xlabel="validation accuracy without attack (%)", ylabel="under attack (%)")
    axes.margins(0.14)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return rendering.svg(figure)


def _percent(points: list[Point], name: str) -> list[float]:
    return [100 * getattr(p, name) for p in points]
