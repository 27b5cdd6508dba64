"""What a data format is: how to recognise it, and how to load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.data import Data


@dataclass(frozen=True, slots=True)
class Source:
    """One family of data formats; each file of :mod:`holdfast.modalities` holds one as ``SOURCE``.

    Attributes:
        name: What it is called in lists.
        summary: What it is and how to write it, in one line.
        accepts: Whether ``spec`` is data of this kind, by its name or first bytes.
        load: ``(spec, label, n)`` -> data; ``n`` is how many samples will be used, where known.
    """

    name: str
    summary: str
    accepts: Callable[[str], bool]
    load: Callable[[str, str | None, int | None], Data]
