"""Models from Python code: ``package.module:name``, ``file.py:name(option=1)``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from holdfast.errors import HoldfastError, ModelError
from holdfast.loading.loaded import Loaded
from holdfast.loading.weights import load_weights
from holdfast.threat import Access


def load_python(reference: str, weights: str | None = None) -> Loaded:
    """The model that ``package.module:name`` or ``package.module:name(options)`` refers to.

    A module is taken as it is, a class or a function without required arguments is called to
    build one, and a function of the inputs is the model itself. The current directory can be
    imported from.

    Raises:
        ModelError: where the code cannot be imported or run, or the weights do not fit.
    """
    place, _, expression = reference.rpartition(":")
    names, call = _parse(expression, reference)
    value = _lookup(_imported(place, reference), names, reference)
    f = _built(value, call, reference)
    notes = [reference]
    if weights is not None:
        if not isinstance(f, nn.Module):
            raise ModelError(
                f"{reference} is a {type(f).__name__}, not a torch.nn.Module: it cannot take the "
                "weights. Return the module itself, or load the weights in the function."
            )
        notes.append(load_weights(f, Path(weights).expanduser()))
    if not isinstance(f, nn.Module) and hasattr(f, "predict_proba"):
        return Loaded(_probabilities(f), ", ".join([*notes, "predict_proba"]), Access.SCORES)
    if isinstance(f, type) or not callable(f):
        raise ModelError(
            f"{reference} gives a {type(f).__name__}, which is not a model. It must be or return a "
            "torch.nn.Module, or a function from inputs to scores or labels."
        )
    return Loaded(f, ", ".join(notes), Access.GRADIENTS)


def _parse(expression: str, reference: str) -> tuple[list[str], ast.Call | None]:
    """``a.b(c=1)`` -> the names and the call; arguments are plain values."""
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        node = None
    call = node if isinstance(node, ast.Call) else None
    names: list[str] = []
    part = call.func if call else node
    while isinstance(part, ast.Attribute):
        names.insert(0, part.attr)
        part = part.value
    if not isinstance(part, ast.Name):
        raise ModelError(
            f"Cannot read {reference!r}. Write package.module:name or "
            "package.module:name(option=value), with plain values."
        )
    return [part.id, *names], call


def _imported(place: str, reference: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        if place.endswith(".py"):
            return _from_file(Path(place).expanduser())
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and place != missing and not place.startswith(f"{missing}."):
            raise ModelError(
                f"{place} needs the package {missing!r}, which is not installed here."
            ) from error
        raise ModelError(
            f"There is no Python module {place!r} for {reference!r}. It is looked for in the "
            f"current directory ({here}) and among installed packages; a file may be given too: "
            "path/to/file.py:name."
        ) from None
    except HoldfastError:
        raise
    except Exception as error:
        raise _failed(f"importing {place}", error) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _lookup(module: ModuleType, names: list[str], reference: str) -> Any:
    value: Any = module
    for name in names:
        if not hasattr(value, name):
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise ModelError(
                f"{module.__name__} has no {'.'.join(names)!r} (for {reference!r}). It has: "
                f"{', '.join(sorted(known)) or 'nothing that can be called'}."
            )
        value = getattr(value, name)
    return value


def _built(value: Any, call: ast.Call | None, reference: str) -> Any:
    if call is None and (isinstance(value, nn.Module) or not _is_factory(value)):
        return value
    try:
        args = [ast.literal_eval(a) for a in call.args] if call else []
        kwargs = {k.arg or "": ast.literal_eval(k.value) for k in call.keywords} if call else {}
    except ValueError:
        raise ModelError(
            f"The options in {reference!r} must be plain values: numbers, texts in quotes, True, "
            "False, None, lists."
        ) from None
    try:
        return value(*args, **kwargs)
    except HoldfastError:
        raise
    except Exception as error:
        raise _failed(f"building {reference}", error) from error


def _is_factory(value: Any) -> bool:
    """A class, or a function that can be called without arguments."""
    if isinstance(value, type):
        return True
    if not callable(value) or hasattr(value, "predict_proba"):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def _probabilities(estimator: Any) -> Callable[[torch.Tensor], Any]:
    """The class probabilities of a fitted scikit-learn estimator, for flattened inputs."""

    def predict_proba(x: torch.Tensor) -> Any:
        return estimator.predict_proba(x.detach().cpu().flatten(1).numpy())

    return predict_proba


def _failed(what: str, error: Exception) -> ModelError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return ModelError(f"Failed while {what}{where}: {type(error).__name__}: {error}.")
