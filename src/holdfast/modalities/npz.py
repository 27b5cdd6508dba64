"""Arrays in NumPy's ``.npz`` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from holdfast.data import ArrayData, Data
from holdfast.errors import DataError
from holdfast.modalities._labels import class_numbers
from holdfast.modalities._source import Source

_INPUTS = ("x", "x_test", "images", "test_images", "inputs", "data", "features")
_LABELS = ("y", "y_test", "labels", "test_labels", "targets", "target", "label")
_CHANNELS = (1, 3, 4)


def load_npz(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """Inputs and labels from an ``.npz`` file with arrays ``x`` and ``y`` (or their usual names).

    Bytes are scaled to [0, 1] when they are fetched; images with their channels last are turned.

    Raises:
        DataError: where the file cannot be read or does not hold one pair of such arrays.
    """
    path = Path(spec).expanduser()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _paired(path, archive, label)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        pickled = "pickle" in str(error) or "Object arrays" in str(error)
        hint = "Save plain arrays of numbers: object arrays are pickles, which can run code."
        usual = "Write it with numpy.savez(path, x=inputs, y=labels)."
        raise DataError(f"Cannot read {path} ({error}). {hint if pickled else usual}") from None


def _paired(path: Path, archive: np.lib.npyio.NpzFile, label: str | None) -> Data:
    x_name = _named(path, archive, _INPUTS, "inputs")
    y_name = label if label in archive.files else _named(path, archive, _LABELS, "labels")
    x, turned = as_inputs(archive[x_name], path)
    y, names, note = class_numbers(archive[y_name], str(path))
    used = "" if (x_name, y_name) == ("x", "y") else f"arrays {x_name} and {y_name}"
    notes = "; ".join(text for text in (path.name, used, turned, note) if text)
    return ArrayData(torch.from_numpy(x), y, names, notes)


def _named(path: Path, archive: np.lib.npyio.NpzFile, names: tuple[str, ...], what: str) -> str:
    by_lower = {name.lower(): name for name in archive.files}
    found = next((by_lower[name] for name in names if name in by_lower), None)
    if found is None:
        held = ", ".join(f"{name} {archive[name].shape}" for name in archive.files) or "nothing"
        raise DataError(
            f"{path} has no {what}: it holds {held}. Name the array one of: {', '.join(names)}."
        )
    return found


def as_inputs(x: np.ndarray, where: object) -> tuple[np.ndarray, str]:
    """Inputs with channels first, and a note on what was done.

    Bytes ``(n, h, w)`` get a channel axis; ``(n, h, w, c)`` with c of 1, 3 or 4 is turned where
    the second axis cannot be the channels.

    Raises:
        DataError: for arrays that are not numbers or have no axis of features.
    """
    if x.dtype.kind not in "iufb" or x.ndim < 2:
        raise DataError(
            f"The inputs of {where} have shape {x.shape} and type {x.dtype}: give numbers of shape "
            "(n, features) or (n, channels, height, width)."
        )
    notes = ["8-bit values scaled to [0, 1]"] if x.dtype == np.uint8 else []
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[:, None]
        notes.append("grey images given a channel axis")
    elif x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        x = np.ascontiguousarray(np.moveaxis(x, 3, 1))
        notes.append("channels moved to the front")
    if x.dtype.kind in "ui" and x.dtype != np.uint8:
        x = x.astype(np.float32)
    return x, ", ".join(notes)


SOURCE = Source(
    name="npz",
    summary="data.npz with arrays x (n, ...) and y (n,)",
    accepts=lambda spec: Path(spec).suffix.lower() == ".npz" and Path(spec).expanduser().is_file(),
    load=load_npz,
)
