"""Inputs as pictures (PNG data inside the page), or as their most changed features."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MAX_SIDE = 224  # pixels; larger pictures are shown reduced
_MIN_SIDE = 5  # a shorter side is a table or a series, not a picture
_FACTORS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an input is a picture: its channel axis (None: there is none) and colours (1 or 3)."""

    axis: int | None
    n_colours: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Triple:
    """Original, changed and amplified difference as data URIs.

    Attributes:
        factor: By how much the difference is amplified; grey is no change.
        is_reduced: Whether the pictures are smaller than the inputs.
    """

    before: str
    after: str
    difference: str
    factor: int
    width: int
    height: int
    is_reduced: bool


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """One feature before and after."""

    place: str
    before: float
    after: float


def layout(shape: tuple[int, ...]) -> Layout | None:
    """How inputs of this shape are pictures; None: they are not."""
    if len(shape) == 2:
        candidates = [(None, 1, *shape)]
    elif len(shape) == 3:
        channels_first = (0, shape[0], shape[1], shape[2])
        channels_last = (2, shape[2], shape[0], shape[1])
        candidates = [channels_first, channels_last]
    else:
        return None
    for axis, n_colours, height, width in candidates:
        if n_colours in (1, 3) and min(height, width) >= _MIN_SIDE:
            return Layout(axis, n_colours, height, width)
    return None


def triple(
    x: NDArray[np.float32], x_adv: NDArray[np.float32], bounds: tuple[float, float] | None
) -> Triple | None:
    """The three pictures of an input ``(*shape)`` and its changed version; None: no picture."""
    kind = layout(x.shape)
    if kind is None:
        return None
    before, after = _colours_last(x, kind), _colours_last(x_adv, kind)
    low, high = bounds or (min(before.min(), after.min()), max(before.max(), after.max()))
    width = max(float(high - low), 1e-12)
    before, after = (before - low) / width, (after - low) / width
    delta = after - before
    factor = _factor(float(np.abs(delta).max()))
    step = -(-max(kind.height, kind.width) // _MAX_SIDE)
    return Triple(
        _uri(before, step),
        _uri(after, step),
        _uri(0.5 + 0.5 * np.clip(factor * delta, -1, 1), step),
        factor,
        -(-kind.width // step),
        -(-kind.height // step),
        step > 1,
    )


def most_changed(
    x: NDArray[np.float32], x_adv: NDArray[np.float32], n: int = 6
) -> list[FeatureChange]:
    """The ``n`` features that changed most, the largest change first; unchanged ones left out."""
    delta = np.abs(x_adv.astype(np.float64) - x).ravel()
    order = np.argsort(-delta, kind="stable")[:n]
    changes = []
    for i in (i for i in order if delta[i] > 0):
        place = ", ".join(str(int(p)) for p in np.unravel_index(int(i), x.shape))
        changes.append(FeatureChange(place, float(x.ravel()[i]), float(x_adv.ravel()[i])))
    return changes


def _factor(largest: float) -> int:
    """The largest round factor that keeps the largest change within the picture's range."""
    return max((f for f in _FACTORS if f * largest <= 1 + 1e-3), default=1)


def _colours_last(x: NDArray[np.float32], kind: Layout) -> NDArray[np.float64]:
    picture = x.astype(np.float64)
    if kind.axis is not None:
        picture = np.moveaxis(picture, kind.axis, 2)
    return picture[..., 0] if picture.ndim == 3 and kind.n_colours == 1 else picture


def _uri(picture: NDArray[np.float64], step: int) -> str:
    """Values in [0, 1] as an 8-bit PNG; large ones keep every ``step``-th pixel."""
    levels = np.clip(np.round(255 * picture[::step, ::step]), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
