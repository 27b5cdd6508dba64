"""The l1 ball cut with the domain: the absolute changes may sum to eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.perturbations._scaling import soft_threshold_level
from holdfast.rows import like, static_field


@final
@dataclass(frozen=True, slots=True)
class L1Ball:
    """``{z : ||z - x||_1 <= eps, box_lower <= z <= box_upper}``; see ``AllowedSet``."""

    geometry: ClassVar[str] = "l1"

    x: Tensor
    radius: Tensor
    box_lower: Tensor = static_field()
    box_upper: Tensor = static_field()

    @staticmethod
    def around(x: Tensor, eps: Tensor, box_lower: Tensor, box_upper: Tensor) -> L1Ball:
        """The ball of radius ``eps`` ``(n,)`` around each sample of ``x``."""
        return L1Ball(x, eps, box_lower, box_upper)

    def resized(self, radius: Tensor) -> L1Ball:
        """The same set with another radius ``(n,)``."""
        return L1Ball(self.x, radius, self.box_lower, self.box_upper)

    def project(self, z: Tensor) -> Tensor:
        """Exact projection onto ball and box together (Croce and Hein, 2021, arXiv:2103.01208).

        ``v = x + sign(d) min(max(|d| - t, 0), room)`` with ``d = z - x`` and the smallest t that
        fits the ball.
        """
        d = (z - self.x).double().flatten(1)
        limit = self._room(d)
        level = soft_threshold_level(d.abs(), limit, self.radius.double())
        size = torch.minimum((d.abs() - level[:, None]).clamp_min(0.0), limit)
        return self._moved(d.sign() * size)

    def _room(self, d: Tensor) -> Tensor:
        """How far each coordinate may move in the direction of ``d`` ``(n, m)`` float64."""
        up = (self.box_upper - self.x).double().flatten(1)
        down = (self.x - self.box_lower).double().flatten(1)
        return torch.where(d > 0, up, down)

    def _moved(self, delta: Tensor) -> Tensor:
        z = self.x + delta.to(self.x.dtype).reshape(self.x.shape)
        return torch.minimum(torch.maximum(z, self.box_lower), self.box_upper)

    def direction(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The signed unit vector of the largest gradient entry that the box still lets move.

        Attacks that spread a step over several coordinates (l1-APGD) choose their own.
        """
        if at is not None:
            end = torch.where(gradient > 0, self.box_upper, self.box_lower)
            gradient = torch.where(at == end, 0.0, gradient)
        g = gradient.flatten(1)
        best = g.abs().argmax(1, keepdim=True)
        unit = torch.zeros_like(g).scatter_(1, best, g.gather(1, best).sign())
        return unit.reshape(gradient.shape)

    def natural_step(self, steps: int) -> Tensor:
        """2.5 times the radius over the steps (Madry et al., 2018)."""
        return self.radius * min(1.0, 2.5 / steps)

    def maximise_linear(self, gradient: Tensor) -> Tensor:
        """Greedy: fill the coordinates with the largest gradient up to the box."""
        g = gradient.double().flatten(1)
        size, order = g.abs().sort(dim=1, descending=True)
        room = torch.where(size > 0, self._room(g).gather(1, order), 0.0)
        before = room.cumsum(1) - room
        used = torch.minimum((self.radius.double()[:, None] - before).clamp_min(0.0), room)
        return self._moved(torch.zeros_like(g).scatter_(1, order, used) * g.sign())

    def sample(self, rng: Rng) -> Tensor:
        """Uniform on the l1 ball (exponential spacings), then clipped to the domain."""
        shape = tuple(self.x.shape[1:])
        e = -torch.log1p(-rng.fold(0).uniform(shape, torch.float64)).flatten(1)
        rest = -torch.log1p(-rng.fold(1).uniform((1,), torch.float64))
        signs = rng.fold(2).sign(shape, torch.float64).flatten(1)
        d = self.radius.double()[:, None] * signs * e / (e.sum(1, keepdim=True) + rest)
        return self._moved(d)

    def towards(self, z: Tensor, share: Tensor) -> Tensor:
        """``x + share (z - x)``."""
        return self.x + like(share.to(z.dtype), z) * (z - self.x)

    def distance(self, z: Tensor) -> Tensor:
        """``||z - x||_1`` ``(n,)`` in float64."""
        return (z.double() - self.x.double()).abs().flatten(1).sum(1)

    def tolerance(self) -> Tensor:
        """Two roundings of every coordinate of x + delta."""
        unit = torch.finfo(self.x.dtype).eps
        return unit * (self.x.double().abs().flatten(1).sum(1) + 2 * self.radius.double())

    def contains(self, z: Tensor) -> Tensor:
        """Inside the domain exactly, inside the ball up to ``tolerance``."""
        in_box = ((z >= self.box_lower) & (z <= self.box_upper)).flatten(1).all(1)
        return in_box & (self.distance(z) <= self.radius.double() + self.tolerance())

    def hull(self) -> tuple[Tensor, Tensor]:
        """``[x - eps, x + eps]`` cut with the domain."""
        eps = like(self.radius, self.x)
        lower = torch.maximum(self.x - eps, self.box_lower)
        return lower, torch.minimum(self.x + eps, self.box_upper)
