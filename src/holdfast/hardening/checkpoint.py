"""Checkpoints: written whole or not at all, and enough to go on bit for bit.

A file holds tensors and plain values only and is read that way, so that no file can run code.
"""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import JournalError

LAST, GOOD, BEST = "last.pt", "good.pt", "best.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write beside the place, flush to the disk, and rename: a crash leaves the old file.

    Raises:
        JournalError: where the disk is full or cannot be written; the old file is intact.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps a short write in a RuntimeError
        draft.unlink(missing_ok=True)
        raise explained(error, path) from error


def load(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None where there is none.

    Raises:
        JournalError: where the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().partition("\n")[0]
        raise JournalError(
            f"The checkpoint {path} cannot be read ({first}). Remove it to start anew from the "
            "model that was given, or give another --out."
        ) from None


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's own generators, which a module's dropout draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put it back."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def explained(error: Exception, path: Path) -> JournalError:
    """What went wrong while writing ``path``, with the next step."""
    code = getattr(error, "errno", None)
    is_full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "write" in str(error).lower()
    if is_full:
        return JournalError(
            f"The disk of {path.parent} is full. The last checkpoint and your model are intact: "
            "free some space and run the same command again, or give another --out."
        )
    return JournalError(f"Cannot write to {path.parent}: {error}.")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        JournalError: where the disk is full or cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise explained(error, path) from error
