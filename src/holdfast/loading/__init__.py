"""Models from files and names, without running code that a file brings along.

A model reference is a ``torch.export`` program (``.pt2``), an ONNX file (``.onnx``) or Python code
(``package.module:name``, ``file.py:name(option=1)``), the last with weights from a file if wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import ModelError
from holdfast.loading.loaded import Loaded

if TYPE_CHECKING:
    from holdfast.data import Data
    from holdfast.model import Model
    from holdfast.plan import Plan

__all__ = ["Loaded", "load_model", "open_model"]

HOW_TO_EXPORT = """Save it as a program instead, once, where the model's code is at hand:
    import torch
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model.eval(), (x[:2],), dynamic_shapes=(batch,))
    torch.export.save(program, "model.pt2")
or keep the code and give package.module:function with --weights FILE."""

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".model", ".joblib"}
_FORMS = (
    "Give a torch.export program (model.pt2), an ONNX file (model.onnx) or Python code "
    "(package.module:function, with --weights FILE if it needs them)."
)


def load_model(source: str, weights: str | None = None, device: str | None = None) -> Loaded:
    """The model that ``source`` names.

    Args:
        source: ``model.pt2``, ``model.onnx`` or ``package.module:function_or_instance[(options)]``.
        weights: A ``.safetensors`` file or a state dict in a ``.pt`` file, for Python code only.
        device: Where it will run; an exported program is moved there.

    Raises:
        ModelError: where there is no such model, or it cannot be loaded safely.
        PrerequisiteError: for ONNX files without onnxruntime.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    is_code = ":" in source and suffix not in {".pt2", ".onnx", *_PICKLES}
    if is_code:
        from holdfast.loading.python import load_python

        return load_python(source, weights)
    _check_file(path, suffix, weights)
    if suffix == ".onnx":
        from holdfast.loading.onnx import load_onnx

        return load_onnx(path, device)
    from holdfast.loading.exported import load_exported

    return load_exported(path, device)


def open_model(plan: Plan, data: Data) -> Model:
    """The model of a plan, wrapped with its domain, normalisation and access.

    Raises:
        ModelError: where it cannot be loaded, or was given as a Python object.
    """
    from torch import nn

    from holdfast.modalities import data_domain
    from holdfast.model import Model
    from holdfast.threat import Domain

    spec = plan.model
    if not spec.source:
        raise ModelError(
            "The plan holds a model that was given as a Python object, which cannot be loaded "
            "again. Audit from Python, or name the model with package.module:function."
        )
    device = _device(plan.device)
    loaded = load_model(spec.source, spec.weights, device)
    is_movable = isinstance(loaded.f, nn.Module) or plan.device is not None
    domain = data_domain(data) if spec.domain == "data" else Domain(*spec.domain)
    return Model(
        loaded.f,
        domain=domain,
        mean=spec.mean,
        std=spec.std,
        device=device if is_movable else None,
        access=plan.access,
        n_classes=spec.classes,
        batch_size=plan.batch_size,
        description=loaded.description,
    )


def _device(wanted: str | None) -> str | None:
    """``wanted`` if it exists here; the GPU, if there is one, for None."""
    import torch

    from holdfast._wrapping import usable_device

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else None
    return str(usable_device(wanted))


def _check_file(path: Path, suffix: str, weights: str | None) -> None:
    if suffix not in {".pt2", ".onnx", *_PICKLES}:
        hint = f"The file {path} has another form. " if path.is_file() else ""
        raise ModelError(f"Cannot read the model {str(path)!r}. {hint}{_FORMS}")
    if not path.is_file():
        raise ModelError(f"There is no file {path}. {_FORMS}")
    if suffix in _PICKLES:
        from holdfast.loading.weights import explain_pickle

        raise ModelError(f"{explain_pickle(path)}\n{HOW_TO_EXPORT}")
    if weights is not None:
        raise ModelError(
            f"{path} holds its own weights: leave out --weights, or give the model's code "
            "(package.module:function)."
        )
