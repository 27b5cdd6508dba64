"""What pages are made of: templates without scripts, and pictures as SVG."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """The template with these values; everything but markup is escaped."""
    return _environment().get_template(template).render(**values)


def svg(figure: Any) -> Markup:
    """A matplotlib figure, the same text for the same figure."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return Markup(out.getvalue()[out.getvalue().index("<svg") :])


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("holdfast.hardening"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
