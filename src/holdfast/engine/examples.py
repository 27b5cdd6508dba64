"""The most easily broken samples, kept with their originals so that a report needs no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME = "examples.safetensors"
N_EXAMPLES = 24


def most_easily_broken(is_broken: np.ndarray, size: np.ndarray) -> list[int]:
    """At most 24 broken samples, those with the smallest change first."""
    rows = np.flatnonzero(is_broken)
    order = np.argsort(np.nan_to_num(size[rows], nan=np.inf), kind="stable")
    return rows[order][:N_EXAMPLES].tolist()


def write_examples(directory: Path, threat: str, x: Tensor, x_adv: Tensor, rows: list[int]) -> None:
    """Add the examples of one threat to the directory's file, in one step."""
    path = Path(directory) / NAME
    tensors = load_file(path) if path.exists() else {}
    tensors[f"{threat}/x"] = x.contiguous()
    tensors[f"{threat}/x_adv"] = x_adv.contiguous()
    tensors[f"{threat}/sample"] = torch.tensor(rows, dtype=torch.int64)
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft)
    draft.replace(path)
