"""What is known of a model before it runs: its modules, its normalisation, its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError


def normalisation(mean: Any, std: Any) -> tuple[Tensor | None, Tensor | None]:
    """Both as tensors, or None where neither is given.

    Raises:
        ModelError: where they are no normalisation.
    """
    if mean is None and std is None:
        return None, None
    mean = torch.as_tensor(0.0 if mean is None else mean, dtype=torch.float32).reshape(-1)
    std = torch.as_tensor(1.0 if std is None else std, dtype=torch.float32).reshape(-1)
    if not bool((std > 0).all()) or not bool(torch.isfinite(mean).all()):
        raise ModelError(
            f"std must be positive and mean finite; got mean {mean.tolist()}, std {std.tolist()}."
        )
    return mean, std


def modules_of(f: Any) -> list[nn.Module]:
    """The modules behind a callable: itself, its owner, what it closes over."""
    if isinstance(f, nn.Module):
        return [f]
    if isinstance(f, partial):
        inner = [f.func, *f.args, *f.keywords.values()]
        return [m for value in inner for m in modules_of(value)]
    owner = getattr(f, "__self__", None)
    found = [owner] if isinstance(owner, nn.Module) else []
    if inspect.isfunction(f):
        seen = inspect.getclosurevars(f)
        values = [*seen.nonlocals.values(), *seen.globals.values()]
        found += [value for value in values if isinstance(value, nn.Module)]
    elif owner is None and hasattr(f, "__dict__"):
        found += [value for value in vars(f).values() if isinstance(value, nn.Module)]
    return found


def home_of(modules: Sequence[nn.Module]) -> tuple[torch.device, torch.dtype]:
    """Where the weights live, and the first floating-point type among them."""
    weights = [w for module in modules for w in (*module.parameters(), *module.buffers())]
    device = weights[0].device if weights else torch.device("cpu")
    floats = (w.dtype for w in weights if w.dtype.is_floating_point)
    return device, next(floats, torch.float32)


def usable_device(wanted: str | torch.device) -> torch.device:
    """The device of this name, if this machine can use it.

    Raises:
        ModelError: where it does not exist here; the message lists those that do.
    """
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).partition("\n")[0]
        why = "" if reason.startswith("Expected one of") else f" ({reason})"  # a list of all names
        raise ModelError(
            f"The device {str(wanted)!r} cannot be used here{why}. Available: {', '.join(known)}."
        ) from None
    return device


def described(f: Any) -> str:
    """What reports call a model that was given no name."""
    if isinstance(f, nn.Module):
        n = sum(p.numel() for p in f.parameters())
        return f"{type(f).__name__} with {n:,} parameters"
    return getattr(f, "__qualname__", type(f).__name__)
