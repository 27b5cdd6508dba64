"""Sphinx configuration. Tables come from the code's own cards and from measured results."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import tables

import holdfast

project = "Holdfast"
author = "The Holdfast authors"
copyright = author
version = release = installed("holdfast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # or --option becomes –option

autodoc_default_options = {
    "members": True,
    "exclude-members": "model_config",
    "special-members": "__call__",
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True  # a reference to something of ours that does not exist fails the build
nitpick_ignore_regex = [
    ("py:.*", r"(?!holdfast\.).*"),
    ("py:class", r"holdfast\.(.*\.)?(_\w+(\.\w+)*|Record|Frozen)"),
]
suppress_warnings = ["ref.python"]  # two classes may share a short name: the nearer one is meant
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"Holdfast {release}"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False


def keep_colons(
    _app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Let a property's first line hold a colon: napoleon would take what precedes it for a type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def resolve_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """``holdfast.Model`` is documented where it lives, in ``holdfast.model``."""
    name = node.get("reftarget", "").removeprefix("holdfast.")
    if name not in holdfast.__all__:
        return None
    home = getattr(holdfast, name).__module__
    place, kind = node["refdoc"], node["reftype"]
    domain = env.get_domain("py")
    return domain.resolve_xref(env, place, app.builder, kind, f"{home}.{name}", node, content)


def setup(app: Any) -> None:
    """Write the tables into the pages that name them in double braces."""
    found = tables.all_tables()

    def fill(_app: Any, _name: str, source: list[str]) -> None:
        for name, text in found.items():
            source[0] = source[0].replace(f"{{{{ {name} }}}}", text)

    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
    app.connect("missing-reference", resolve_public)
