"""The linf ball cut with the domain: every coordinate may move by at most eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.rows import like, static_field


@final
@dataclass(frozen=True, slots=True)
class LinfBall:
    """``{z : |z - x| <= eps, box_lower <= z <= box_upper}``, a box; see ``AllowedSet``."""

    geometry: ClassVar[str] = "linf"

    x: Tensor
    radius: Tensor
    lower: Tensor
    upper: Tensor
    box_lower: Tensor = static_field()
    box_upper: Tensor = static_field()

    @staticmethod
    def around(x: Tensor, eps: Tensor, box_lower: Tensor, box_upper: Tensor) -> LinfBall:
        """The ball of radius ``eps`` ``(n,)`` around each sample of ``x``."""
        lower = torch.maximum(x - like(eps, x), box_lower)
        upper = torch.minimum(x + like(eps, x), box_upper)
        return LinfBall(x, eps, lower, upper, box_lower, box_upper)

    def resized(self, radius: Tensor) -> LinfBall:
        """The same set with another radius ``(n,)``."""
        return LinfBall.around(self.x, radius, self.box_lower, self.box_upper)

    def project(self, z: Tensor) -> Tensor:
        """Coordinate by coordinate."""
        return torch.minimum(torch.maximum(z, self.lower), self.upper)

    def direction(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """``sign(gradient)``."""
        return gradient.sign()

    def natural_step(self, steps: int) -> Tensor:
        """2.5 times the radius over the steps (Madry et al., 2018)."""
        return self.radius * min(1.0, 2.5 / steps)

    def maximise_linear(self, gradient: Tensor) -> Tensor:
        """The corner that the gradient points to; coordinates without gradient stay."""
        corner = torch.where(gradient > 0, self.upper, self.lower)
        return torch.where(gradient == 0, self.x, corner)

    def sample(self, rng: Rng) -> Tensor:
        """Uniform on the box."""
        u = rng.uniform(tuple(self.x.shape[1:]), self.x.dtype)
        return self.project(self.lower + u * (self.upper - self.lower))

    def towards(self, z: Tensor, share: Tensor) -> Tensor:
        """``x + share (z - x)``."""
        return self.x + like(share.to(z.dtype), z) * (z - self.x)

    def distance(self, z: Tensor) -> Tensor:
        """``max |z - x|`` ``(n,)`` in float64."""
        return (z.double() - self.x.double()).abs().flatten(1).amax(1)

    def tolerance(self) -> Tensor:
        """Two roundings of a value of the size of x + eps."""
        unit = torch.finfo(self.x.dtype).eps
        return unit * (self.x.abs().flatten(1).amax(1).double() + self.radius.double())

    def contains(self, z: Tensor) -> Tensor:
        """Inside the domain exactly, inside the ball up to ``tolerance``."""
        in_box = ((z >= self.box_lower) & (z <= self.box_upper)).flatten(1).all(1)
        return in_box & (self.distance(z) <= self.radius.double() + self.tolerance())

    def hull(self) -> tuple[Tensor, Tensor]:
        """The set itself."""
        return self.lower, self.upper
