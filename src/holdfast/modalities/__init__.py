"""Data from files and names: one file per family of formats, found by itself.

A module here with a ``SOURCE`` is a format; a plug-in package announces its own under the
entry-point group ``holdfast.modalities``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import torch

from holdfast.data import Data, FirstN
from holdfast.errors import DataError
from holdfast.modalities._source import Source
from holdfast.threat import Domain

__all__ = ["Source", "data_domain", "load", "sources"]

_ROWS_AT_ONCE = 1024


@cache
def sources() -> tuple[Source, ...]:
    """Every known format, plug-ins last."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    plugins = [point.load() for point in entry_points(group="holdfast.modalities")]
    return (*(m.SOURCE for m in modules if hasattr(m, "SOURCE")), *plugins)


def load(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """The data that ``spec`` names: a file, a folder or a bundled data set.

    Args:
        spec: What to load; :func:`sources` lists the forms.
        label: The label's column, for tables.
        n: Use the first ``n`` samples.

    Raises:
        DataError: where there is no such data, or it cannot be read.
        PrerequisiteError: for tables without pandas.
    """
    for source in sources():
        if source.accepts(spec):
            data = source.load(spec, label, n)
            return FirstN(data, n) if n is not None and n < len(data) else data
    path = Path(spec).expanduser()
    exists = "is of a form that is not known" if path.exists() else "does not exist"
    forms = "\n".join(f"  {source.name}: {source.summary}" for source in sources())
    raise DataError(f"The data {spec!r} {exists}. Give one of:\n{forms}")


def data_domain(data: Data) -> Domain:
    """The range of every feature over all samples: the domain of a table.

    Raises:
        DataError: where values are missing or not finite.
    """
    lowest, highest = [], []
    for start in range(0, len(data), _ROWS_AT_ONCE):
        x, _ = data.fetch(range(start, min(len(data), start + _ROWS_AT_ONCE)))
        lowest.append(x.amin(0))
        highest.append(x.amax(0))
    lower, upper = torch.stack(lowest).amin(0), torch.stack(highest).amax(0)
    if not bool(torch.isfinite(lower).all()) or not bool(torch.isfinite(upper).all()):
        raise DataError(
            f"{data.description} holds values that are missing or infinite: there is no range to "
            "use as the domain. Fill or drop them."
        )
    return Domain(lower, upper)
