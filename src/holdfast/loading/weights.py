"""Weights from files, read as tensors and nothing else."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError

_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "network.", "backbone.")
_SHOWN = 5


def load_weights(module: nn.Module, path: Path) -> str:
    """Put the weights in ``path`` into ``module``; return in words what was done.

    Raises:
        ModelError: where the file holds no weights, or they do not fit; the message names the keys.
    """
    found, place = _state_dict(read_tensors(path), path)
    expected = module.state_dict()
    state, removed = _without_prefix(found, expected)
    problems = _differences(state, expected)
    if problems:
        raise ModelError(
            f"The weights in {path} do not fit {type(module).__name__}:\n{problems}\nCheck that "
            "the code builds the network that was trained, e.g. its size options."
        )
    module.load_state_dict(state)
    notes = [f"entry {place!r}"] if place else []
    notes += [f"prefix {removed!r} removed"] if removed else []
    return f"weights {path.name}" + (f" ({', '.join(notes)})" if notes else "")


def read_tensors(path: Path) -> Any:
    """What a weights file holds: tensors in plain containers.

    Raises:
        ModelError: where it cannot be read, or holds more than that.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{explain_pickle(path)}\nSave the weights alone, where the model's code is at hand:\n"
            '    torch.save(model.state_dict(), "weights.pt")'
        ) from None
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"Cannot read the weights {path} ({first}). Give a .safetensors file, or a state dict "
            "saved with torch.save(model.state_dict(), ...)."
        ) from None


def explain_pickle(path: Path) -> str:
    """Why this file cannot be a model, by looking at it without running it."""
    if _is_torchscript(path):
        return (
            f"{path} is a TorchScript program. TorchScript is no longer developed, and such a file "
            "can hold code that Holdfast cannot check."
        )
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return (
            f"{path} is a pickle of Python objects, perhaps a whole module. Reading it could run "
            "any code that its maker put in, so it is refused."
        )
    what = "weights" if isinstance(held, Mapping) else f"a {type(held).__name__}"
    return (
        f"{path} holds {what} only, not the network. Give the network's code and these weights: "
        f"package.module:function --weights {path}"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _state_dict(held: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The mapping from names to tensors, and the entry it was found in."""
    place = ""
    for _ in range(3):
        if isinstance(held, Mapping) and held and all(isinstance(v, Tensor) for v in held.values()):
            return {str(name): tensor for name, tensor in held.items()}, place
        inner = [k for k in _CONTAINERS if isinstance(held, Mapping) and k in held]
        if not inner:
            break
        held, place = held[inner[0]], f"{place}.{inner[0]}".lstrip(".")
    keys = f"the keys {_some(list(map(str, held)))}" if isinstance(held, Mapping) else type(held)
    raise ModelError(
        f"{path} holds no state dict: seen {keys}. Expected names with tensors, or such a mapping "
        f"under one of: {', '.join(_CONTAINERS)}."
    )


def _without_prefix(
    state: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """``state`` with a prefix that wrappers add taken off, where that makes it fit better."""
    best, removed, prefix = state, "", ""
    while set(best) != set(expected):
        found = [p for p in _PREFIXES if all(key.startswith(prefix + p) for key in state)]
        if not found:
            break
        prefix += found[0]
        shorter = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        if len(set(shorter) & set(expected)) > len(set(best) & set(expected)):
            best, removed = shorter, prefix
    return best, removed


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    named = {"missing": missing, "not in the network": unexpected, "of another shape": shapes}
    return "\n".join(f"  {what}: {_some(keys)}" for what, keys in named.items() if keys)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
