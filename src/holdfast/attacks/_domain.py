"""The box and the norm behind an allowed set, for attacks that leave the ball on purpose."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from holdfast.threat import AllowedSet


def norm_of(allowed: AllowedSet) -> str:
    """``linf``, ``l2``, ``l1`` or ``l0``."""
    return cast("Any", allowed).geometry


def ends_of(allowed: AllowedSet) -> tuple[Tensor, Tensor]:
    """The lower and upper end of the domain, which broadcast against the inputs."""
    ball = cast("Any", allowed)
    return ball.box_lower, ball.box_upper


def width_of(allowed: AllowedSet) -> Tensor:
    """The largest side of the domain: the unit of step sizes that papers give for [0, 1]."""
    lower, upper = ends_of(allowed)
    return (upper - lower).max()


def clipped(z: Tensor, allowed: AllowedSet) -> Tensor:
    """``z`` inside the domain."""
    lower, upper = ends_of(allowed)
    return torch.minimum(torch.maximum(z, lower), upper)


def cosine(step: Tensor, steps: int, first: float, last: float) -> Tensor:
    """A value that falls from ``first`` to ``last`` along half a cosine, each row by its clock."""
    turn = torch.cos(torch.pi * step.to(torch.float32) / steps)
    return last + (first - last) * (1 + turn) / 2
