"""The l0 "ball" cut with the domain: at most eps coordinates may take any valid value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.rows import static_field

_REACH = 20.0


@final
@dataclass(frozen=True, slots=True)
class L0Ball:
    """``{z : #(z != x) <= eps, box_lower <= z <= box_upper}``; see ``AllowedSet``.

    A coordinate is one number of the input: a colour image has three per pixel.
    """

    geometry: ClassVar[str] = "l0"

    x: Tensor
    radius: Tensor
    box_lower: Tensor = static_field()
    box_upper: Tensor = static_field()

    @staticmethod
    def around(x: Tensor, eps: Tensor, box_lower: Tensor, box_upper: Tensor) -> L0Ball:
        """At most ``eps`` ``(n,)`` coordinates away from each sample of ``x``."""
        return L0Ball(x, eps, box_lower, box_upper)

    def resized(self, radius: Tensor) -> L0Ball:
        """The same set with another number of coordinates ``(n,)``."""
        return L0Ball(self.x, radius, self.box_lower, self.box_upper)

    def _clip(self, z: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, self.box_lower), self.box_upper)

    def _keep(self, z: Tensor, gain: Tensor) -> Tensor:
        """``z`` in the ``eps`` coordinates with the largest positive ``gain``, else ``x``."""
        size, order = gain.flatten(1).sort(dim=1, descending=True, stable=True)
        rank = torch.arange(size.shape[1], device=size.device)
        chosen = (rank < self.radius.floor()[:, None]) & (size > 0)
        kept = torch.zeros_like(chosen).scatter_(1, order, chosen)
        return torch.where(kept.reshape(z.shape), z, self.x)

    def project(self, z: Tensor) -> Tensor:
        """Keep the coordinates whose keeping brings the result nearest to ``z``."""
        clipped = self._clip(z)
        # (z - x)^2 - (z - clipped)^2, without the cancellation where z is far away
        gain = (clipped - self.x) * ((z - self.x) + (z - clipped))
        return self._keep(clipped, gain)

    def direction(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """``gradient / max |gradient|``: the projection chooses the coordinates."""
        size = gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return gradient / size.reshape(-1, *(1,) * (gradient.ndim - 1))

    def natural_step(self, steps: int) -> Tensor:
        """Many times the domain's width.

        The projection then keeps the coordinates with the largest ``gradient * room``, with some
        preference for those it kept before.
        """
        width = _REACH * (self.box_upper - self.box_lower).max()
        return width.to(self.radius).expand_as(self.radius).clone()

    def maximise_linear(self, gradient: Tensor) -> Tensor:
        """Move the coordinates with the largest gain to the end of the box."""
        end = torch.where(gradient > 0, self.box_upper, self.box_lower).to(self.x.dtype)
        return self._keep(end, gradient * (end - self.x))

    def sample(self, rng: Rng) -> Tensor:
        """``eps`` coordinates chosen at random take uniform values of the domain."""
        shape = tuple(self.x.shape[1:])
        u = rng.fold(0).uniform(shape, self.x.dtype)
        value = self._clip(self.box_lower + u * (self.box_upper - self.box_lower))
        return self._keep(value, 1.0 + rng.fold(1).uniform(shape, self.x.dtype))

    def towards(self, z: Tensor, share: Tensor) -> Tensor:
        """The largest changes of ``z``, as many as ``share`` of them rounded down."""
        kept = (share.double() * self.distance(z)).floor().to(self.radius.dtype)
        return self.resized(kept).project(z)

    def distance(self, z: Tensor) -> Tensor:
        """How many coordinates differ ``(n,)``, as float64."""
        return (z != self.x).flatten(1).sum(1).double()

    def tolerance(self) -> Tensor:
        """None: a coordinate has changed or not."""
        return torch.zeros_like(self.radius, dtype=torch.float64)

    def contains(self, z: Tensor) -> Tensor:
        """Exact."""
        in_box = ((z >= self.box_lower) & (z <= self.box_upper)).flatten(1).all(1)
        return in_box & (self.distance(z) <= self.radius.double())

    def hull(self) -> tuple[Tensor, Tensor]:
        """The domain where a coordinate may change at all."""
        free = (self.radius >= 1).reshape(-1, *(1,) * (self.x.ndim - 1))
        lower = torch.where(free, self.box_lower, self.x)
        return lower, torch.where(free, self.box_upper, self.x)
