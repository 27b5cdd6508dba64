"""Labels in whatever form a file holds them -> class numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataError


def class_numbers(values: Any, where: str) -> tuple[Tensor, tuple[str, ...], str]:
    """Labels ``(n,)`` int64, class names where the labels were texts, and a note on what was done.

    Integers stay as they are, and False is 0. Texts are numbered in sorted order; rows of one 1 and
    zeros (one-hot) become the position of the 1.

    Raises:
        DataError: for anything else; ``where`` says whose labels they are.
    """
    y = np.asarray(values)
    note = ""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.ndim == 2 and _is_one_hot(y):
        y, note = y.argmax(1), "one-hot labels turned into class numbers"
    if y.ndim != 1:
        raise DataError(f"The labels of {where} have shape {y.shape}: give one per sample, (n,).")
    if y.dtype.kind == "b":
        return torch.from_numpy(y.astype(np.int64)), ("False", "True"), note
    if y.dtype.kind in "iu":
        return torch.from_numpy(y.astype(np.int64)), (), note
    if y.dtype.kind == "f":
        _check_whole(y, where)
        return torch.from_numpy(y.astype(np.int64)), (), note
    names, numbers = np.unique(y.astype(str), return_inverse=True)
    note = f"labels {_listed(names)} numbered in this order"
    return torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, names)), note


def _is_one_hot(y: np.ndarray) -> bool:
    return y.dtype.kind in "iufb" and bool((y.sum(1) == 1).all() and np.isin(y, (0, 1)).all())


def _check_whole(y: np.ndarray, where: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(y) | (y != np.round(y)))
    if wrong.size:
        raise DataError(
            f"The label of sample {wrong[0]} of {where} is {y[wrong[0]]}. Labels must be class "
            "numbers or names, and none may be missing."
        )


def _listed(names: np.ndarray) -> str:
    shown = [str(name) for name in names[:4]]
    return ", ".join(shown) + (f", ... ({len(names)} classes)" if len(names) > 4 else "")
