"""What a network's output means, and how it becomes logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import ModelError

_SMALLEST = 1e-30  # probabilities below this have the logarithm of this

HEADS = ("logits", "logit", "probabilities", "probability", "labels")


@dataclass(frozen=True, slots=True)
class Head:
    """What the network's output means.

    Attributes:
        kind: ``logits`` ``(n, k)``, ``logit`` (one per sample, for class 1 of two),
            ``probabilities`` ``(n, k)``, ``probability`` (one per sample), ``labels`` (integers).
        n_classes: Number of classes; a single logit or probability counts two.
    """

    kind: str = "logits"
    n_classes: int = 0


def as_logits(out: Tensor, head: Head) -> Tensor:
    """A network's output as logits ``(n, k)`` float32, by what its head means."""
    kind, _, hidden = head.kind.partition(", ")
    if kind == "labels":
        return _one_hot(out.reshape(len(out)).long(), head.n_classes)
    z = out.float()
    if kind in ("probability", "logit"):
        z = z.reshape(len(z))
        if kind == "probability":
            z = z.clamp_min(_SMALLEST).log() - (1 - z).clamp_min(_SMALLEST).log()
        z = torch.stack([torch.zeros_like(z), z], 1)
    elif kind == "probabilities":
        z = z.clamp_min(_SMALLEST).log()
    return _one_hot(z.argmax(1), z.shape[1]) if hidden else z


def _one_hot(labels: Tensor, n_classes: int) -> Tensor:
    if bool((labels < 0).any()) or bool((labels >= n_classes).any()):
        raise ModelError(
            f"The model answered with label {int(labels.max())}, but there are {n_classes} "
            "classes. Give the number of classes (--classes)."
        )
    return torch.nn.functional.one_hot(labels, n_classes).float()


def recognised(out: Tensor, n_classes: int) -> Head:
    """What this output means."""
    if not out.dtype.is_floating_point and out.ndim <= 2 and out[0].numel() == 1:
        return Head("labels", max(n_classes, int(out.max()) + 1, 2))
    if out.ndim > 2 or out.ndim == 0 or not out.dtype.is_floating_point:
        raise ModelError(
            f"The model's output has shape {tuple(out.shape)} and type {out.dtype}. A classifier "
            "gives one row of scores per input (n, k), one logit (n,), or integer labels (n,)."
        )
    if not bool(torch.isfinite(out).all()):
        raise ModelError(
            "The model's output is not finite (NaN or infinite) on clean inputs. Check its weights "
            "and its normalisation (--mean, --std)."
        )
    in_unit = bool((out >= 0).all()) and bool((out <= 1).all())
    if out.ndim == 1 or out.shape[1] == 1:
        return Head("probability" if in_unit else "logit", 2)
    sums = out.float().sum(1)
    is_probability = in_unit and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
    return Head("probabilities" if is_probability else "logits", out.shape[1])


def unwrapped(out: Any) -> Tensor:
    """The tensor inside whatever a model returns."""
    if isinstance(out, dict):
        out = out.get("logits", next(iter(out.values()), None))
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, (tuple, list)) and out and isinstance(out[0], (Tensor, np.ndarray)):
        out = out[0]
    if not isinstance(out, Tensor):
        try:
            out = torch.as_tensor(np.asarray(out))
        except (TypeError, ValueError, RuntimeError):
            raise ModelError(
                f"The model returned a {type(out).__name__}. Return a tensor or an array of "
                "scores (n, k), logits (n,) or labels (n,)."
            ) from None
    if out.ndim == 0:
        raise ModelError("The model returned a single number. Return one row of scores per input.")
    return out
