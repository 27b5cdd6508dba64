"""Charts as SVG whose colours follow the page: light, dark or print.

Charts are drawn in stand-in colours that are then replaced by CSS variables, with real text in the
reader's own font.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from holdfast.reports.results import Curve

_INK, _GRID, _BEFORE, _AFTER = "#010101", "#020202", "#030303", "#040404"
_COLOURS = {
    _INK: "currentColor",
    _GRID: "var(--line)",
    _BEFORE: "var(--before)",
    _AFTER: "var(--after)",
}
_SIZE = (5.2, 3.1)  # inches of 72 units: legible from 320 pixels on
_MARGINS = {"left": 0.145, "right": 0.965, "top": 0.975, "bottom": 0.165}
_MAX_POINTS = 300
_BINS = 24
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "holdfast",
    "font.size": 11.0,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "hatch.linewidth": 0.7,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class Series:
    """Values ``(n,)`` with what they are called; the last of a chart is hatched."""

    name: str
    values: NDArray[np.float64]


def curve(found: Curve, xlabel: str, alt: str) -> Markup:
    """Accuracy against the size of the change, as steps with their interval."""
    eps = found.eps
    if len(eps) > _MAX_POINTS:
        eps = np.linspace(eps[0], eps[-1], _MAX_POINTS)
    rows = np.maximum(0, np.searchsorted(found.eps, eps, "right") - 1)
    value, lower, upper = found.accuracy[rows], found.lower[rows], found.upper[rows]

    def draw(axes: Axes) -> None:
        band = {"step": "post", "color": _BEFORE, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(eps, lower, upper, label="95% interval", **band)
        axes.step(eps, value, where="post", color=_BEFORE, linewidth=2.2, label="at most")
        axes.plot(eps[-1:], value[-1:], "o", color=_AFTER, markersize=6)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, float(eps[-1]) * 1.02 or 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("samples still right")

    return _svg(draw, alt)


def histogram(
    series: Sequence[Series], limits: tuple[float, float], xlabel: str, alt: str
) -> Markup:
    """How often values occur; those beyond ``limits`` are counted in the outermost bars."""
    edges = np.linspace(*limits, _BINS + 1)

    def draw(axes: Axes) -> None:
        for i, one in enumerate(series):
            counts, _ = np.histogram(np.clip(one.values, *limits), edges)
            is_after = i == len(series) - 1
            bars = axes.stairs(counts, edges, fill=True, label=one.name, linewidth=1.4)
            bars.set(
                facecolor="none" if is_after else _BEFORE,
                edgecolor=_AFTER if is_after else "none",
                hatch="////" if is_after else None,
                alpha=None if is_after else 0.45,
            )
        axes.set_xlim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("samples")

    return _svg(draw, alt, legend=len(series) > 1)


def _svg(draw: Callable[[Axes], None], alt: str, legend: bool = True) -> Markup:
    """One chart. Settings of matplotlib, a user's own among them, are as before when it is done."""
    keep = ("backend", "interactive", "toolbar")
    defaults: Any = matplotlib.rcParamsDefault
    settings: Any = {k: v for k, v in defaults.items() if not k.startswith(keep)} | _SETTINGS
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        figure.subplots_adjust(**_MARGINS)
        draw(axes)
        _plain(axes)
        if legend:
            axes.legend(frameon=False, labelcolor=_INK)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), alt)


def _plain(axes: Axes) -> None:
    """Little ink: two thin lines, a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0)
    axes.tick_params(axis="x", pad=7)  # clear of the lowest label beside it
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _for_page(svg: str, alt: str) -> Markup:
    """The SVG element alone, in the page's colours and font, with words for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r'\sid="[\w.]+_\d+"', "", svg)
    own = hashlib.blake2b((svg + alt).encode(), digest_size=4).hexdigest()
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>chart-{own}-", svg)  # one name once per page
    svg = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "inherit", svg)
    svg = re.sub(r"font: ([\d.]+)px inherit", r"font-size: \1px", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    head = f'<svg role="img" aria-label="{escape(alt)}" '
    return Markup(svg.replace("<svg ", head, 1))
