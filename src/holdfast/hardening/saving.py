"""The hardened model in the format it came in; the user's own file is never written to."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from holdfast.errors import JournalError, ModelError
from holdfast.hardening.checkpoint import explained


def save_model(module: nn.Module, source: str, weights: str | None, directory: Path) -> Path:
    """Write the weights of ``module``, a copy of the model that ``source`` names.

    A ``.pt2`` program is saved as one; everything else as a state dict: ``.pt`` where the weights
    came from such a file, else ``.safetensors``.

    Raises:
        JournalError: where the directory cannot be written.
    """
    if source.endswith(".pt2"):
        return _program(module, Path(source).expanduser(), directory)
    suffix = Path(weights).suffix if weights else ".safetensors"
    path = directory / f"hardened{suffix}"
    state = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    draft = path.with_name(f".{path.name}.tmp")
    try:
        if suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({name: t.clone() for name, t in state.items()}, draft)
        else:
            torch.save(state, draft)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise explained(error, path) from error
    return path


def _program(module: nn.Module, source: Path, directory: Path) -> Path:
    """The exported program with new weights."""
    from holdfast.loading.guard import checked_archive, weights_only

    with weights_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(checked_archive(source))
    new = {name.removeprefix("program."): t for name, t in module.state_dict().items()}
    missing = [name for name in program.state_dict if name not in new]
    if missing:
        raise ModelError(
            f"The program {source} has weights that its module does not show ({missing[0]!r}). "
            "Give the model's code instead: package.module:function --weights FILE."
        )
    with torch.no_grad():
        for name, value in program.state_dict.items():
            value.copy_(new[name])
    path = directory / "hardened.pt2"
    draft = path.with_name(".hardened.tmp.pt2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, draft)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise explained(error, path) from error
    return path


def check_not_overwritten(source: str, weights: str | None, directory: Path) -> None:
    """Refuse a directory in which the result would lie over the user's file.

    Raises:
        JournalError: naming both.
    """
    for given in (source, weights):
        if given and Path(given).expanduser().resolve().parent == directory.resolve():
            name = Path(given).name
            if name.startswith("hardened."):
                raise JournalError(
                    f"The result would overwrite your {given}. Give another directory with --out."
                )
