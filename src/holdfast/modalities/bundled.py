"""Data sets that come with scikit-learn: ``digits`` and ``breast_cancer``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from holdfast.data import ArrayData, Data
from holdfast.errors import DataError
from holdfast.modalities._source import Source

_NAMES = ("digits", "breast_cancer")
_PARTS = ("", "train", "test")
_TRAIN_SHARE = 0.75


def load_bundled(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """``digits`` as ``(n, 1, 8, 8)``, ``breast_cancer`` as ``(n, 30)``, both in [0, 1].

    ``digits:train`` is the first three quarters, ``digits:test`` the rest.

    Raises:
        DataError: for another part.
    """
    name, _, part = spec.partition(":")
    if part not in _PARTS:
        raise DataError(f"Unknown part {part!r} of {name}. Write {name}, {name}:train or :test.")
    x, y, names, note = _digits() if name == "digits" else _breast_cancer()
    cut = int(len(x) * _TRAIN_SHARE)
    rows = {"": slice(None), "train": slice(cut), "test": slice(cut, None)}[part]
    share = {"": "", "train": ", first three quarters", "test": ", last quarter"}[part]
    return ArrayData(x[rows], y[rows], names, f"scikit-learn's {name}{share}; {note}")


def _digits() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...], str]:
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    names = tuple(str(digit) for digit in range(10))
    return x, torch.from_numpy(y).long(), names, "8x8 images, 0-16 scaled to [0, 1]"


def _breast_cancer() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...], str]:
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    x = np.asarray(bunch["data"])
    lower, upper = x.min(0), x.max(0)
    scaled = torch.from_numpy((x - lower) / (upper - lower)).float()
    names = tuple(str(name) for name in bunch["target_names"])
    y = torch.from_numpy(np.asarray(bunch["target"])).long()
    return scaled, y, names, "30 features, each scaled to [0, 1] by its range"


SOURCE = Source(
    name="bundled",
    summary="digits or breast_cancer, from scikit-learn; digits:test is the last quarter",
    accepts=lambda spec: spec.partition(":")[0] in _NAMES,
    load=load_bundled,
)
