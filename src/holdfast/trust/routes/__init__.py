"""Ways to a useful gradient where a model's own misleads; one per file, found by its name."""

from __future__ import annotations

import importlib
from typing import Any

from holdfast.errors import PlanError
from holdfast.trust.routes._base import Way

NAMES = ("straight_through", "neighbours", "expectation", "rescaled", "surrogate")


def route(name: str, directory: str = "", **options: Any) -> Way:
    """The route called ``name`` with these options; ``inner`` is a route, written the same way.

    ``directory`` is the run's, where routes keep files.

    Raises:
        PlanError: where there is none.
    """
    if name not in NAMES:
        raise PlanError(f"Unknown route {name!r}. Use one of: {', '.join(NAMES)}.")
    if options.get("inner") is not None:
        options["inner"] = route(directory=directory, **options["inner"])
    if name == "surrogate":
        options["directory"] = directory
    module = importlib.import_module(f"holdfast.trust.routes.{name}")
    return module.ROUTE(**options)
