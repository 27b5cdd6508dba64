"""The l2 ball cut with the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.perturbations._scaling import clipped_l2_scale
from holdfast.rows import like, static_field


@final
@dataclass(frozen=True, slots=True)
class L2Ball:
    """``{z : ||z - x||_2 <= eps, box_lower <= z <= box_upper}``; see ``AllowedSet``."""

    geometry: ClassVar[str] = "l2"

    x: Tensor
    radius: Tensor
    box_lower: Tensor = static_field()
    box_upper: Tensor = static_field()

    @staticmethod
    def around(x: Tensor, eps: Tensor, box_lower: Tensor, box_upper: Tensor) -> L2Ball:
        """The ball of radius ``eps`` ``(n,)`` around each sample of ``x``."""
        return L2Ball(x, eps, box_lower, box_upper)

    def resized(self, radius: Tensor) -> L2Ball:
        """The same set with another radius ``(n,)``."""
        return L2Ball(self.x, radius, self.box_lower, self.box_upper)

    def project(self, z: Tensor) -> Tensor:
        """``argmin ||v - z||_2``: by the optimality conditions ``v = x + clip(s (z - x))``.

        Without an active box this is the usual rescaling, which is tried first; the exact search
        for s runs for the rows that need it.
        """
        d = z - self.x
        norm = _length(d)
        factor = (self.radius / norm.clamp_min(torch.finfo(d.dtype).tiny)).clamp_max(1.0)
        shrunk = self.x + like(factor, d) * d
        clipped = self._clip(shrunk)
        is_short = (clipped != shrunk).flatten(1).any(1) & (norm > self.radius)
        # a point inside the ball needs the box alone; a clipped one inside the ball would lose
        # length that the ball still grants
        if bool(is_short.any()):
            rows = is_short.nonzero().squeeze(1)
            clipped = clipped.index_copy(0, rows, self._scaled(d, rows))
        return clipped

    def _clip(self, z: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, self.box_lower), self.box_upper)

    def _scaled(self, d: Tensor, rows: Tensor) -> Tensor:
        """``x + clip(s d)`` with the largest allowed s <= 1, for some rows."""
        x, d = self.x[rows], d[rows]
        lower = (self.box_lower - x).double().flatten(1)
        upper = (self.box_upper - x).double().flatten(1)
        s = clipped_l2_scale(d.double().flatten(1), lower, upper, self.radius[rows].double())
        return self._clip(x + like(s.clamp_max(1.0).to(d.dtype), d) * d)

    def direction(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """``gradient / ||gradient||_2``; zero where the gradient is zero."""
        tiny = torch.finfo(gradient.dtype).tiny
        # squares of small gradients vanish: bring the largest entry to one first
        g = gradient / like(gradient.flatten(1).abs().amax(1).clamp_min(tiny), gradient)
        return g / like(_length(g).clamp_min(tiny), g)

    def natural_step(self, steps: int) -> Tensor:
        """2.5 times the radius over the steps (Madry et al., 2018)."""
        return self.radius * min(1.0, 2.5 / steps)

    def maximise_linear(self, gradient: Tensor) -> Tensor:
        """``x + clip(s gradient)`` with the largest s that the ball allows."""
        lower = (self.box_lower - self.x).double().flatten(1)
        upper = (self.box_upper - self.x).double().flatten(1)
        g = self.direction(gradient).double().flatten(1)
        s = clipped_l2_scale(g, lower, upper, self.radius.double())
        d = torch.minimum(torch.maximum(s[:, None] * g, lower), upper)
        return self._clip(self.x + d.to(self.x.dtype).reshape(self.x.shape))

    def sample(self, rng: Rng) -> Tensor:
        """Uniform on the ball (Muller, 1959), then clipped to the domain."""
        shape = tuple(self.x.shape[1:])
        d = self.direction(rng.fold(0).normal(shape, self.x.dtype))
        dim = max(1, self.x[0].numel())
        length = self.radius * rng.fold(1).uniform((), self.x.dtype) ** (1 / dim)
        return self._clip(self.x + like(length, d) * d)

    def towards(self, z: Tensor, share: Tensor) -> Tensor:
        """``x + share (z - x)``."""
        return self.x + like(share.to(z.dtype), z) * (z - self.x)

    def distance(self, z: Tensor) -> Tensor:
        """``||z - x||_2`` ``(n,)`` in float64."""
        return (z.double() - self.x.double()).flatten(1).norm(dim=1)

    def tolerance(self) -> Tensor:
        """Two roundings of every coordinate of x + delta."""
        unit = torch.finfo(self.x.dtype).eps
        return unit * (self.x.double().flatten(1).norm(dim=1) + 2 * self.radius.double())

    def contains(self, z: Tensor) -> Tensor:
        """Inside the domain exactly, inside the ball up to ``tolerance``."""
        in_box = ((z >= self.box_lower) & (z <= self.box_upper)).flatten(1).all(1)
        return in_box & (self.distance(z) <= self.radius.double() + self.tolerance())

    def hull(self) -> tuple[Tensor, Tensor]:
        """``[x - eps, x + eps]`` cut with the domain."""
        eps = like(self.radius, self.x)
        return self._clip(self.x - eps), self._clip(self.x + eps)


def _length(d: Tensor) -> Tensor:
    """``||d||_2`` ``(n,)`` by pairwise summation.

    ``torch.norm`` adds one by one: wrong by 7e-7 at 150,000 float32 coordinates, more than
    ``tolerance`` grants around a black image.
    """
    return d.flatten(1).square().sum(1).sqrt()
