"""Sets of inputs over which networks are bounded, and their linear minimisation.

A region holds ``n`` samples or domains. ``minimum(A)`` is the least value of ``A . x`` over the
region for coefficients ``A (n, k, *shape)``; it is differentiable in ``A`` and never too large.
"""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, final

import torch
from torch import Tensor

from holdfast.errors import DataError, ThreatError
from holdfast.graphs.operator import Box, dot
from holdfast.graphs.shapes import flattened
from holdfast.graphs.window import Window

Norm = Literal["linf", "l2", "l1", "l0"]


class Region(Protocol):
    """A set of inputs for each of ``n`` samples."""

    @property
    def is_box(self) -> bool:
        """Whether the region equals its hull."""
        ...

    def hull(self) -> Box:
        """The smallest box around the region."""
        ...

    def minimum(self, A: Tensor) -> Tensor:
        """``min A . x``: ``(n, k, *shape) -> (n, k)``."""
        ...

    def argmin(self, A: Tensor) -> Tensor:
        """A point that attains the minimum (nearly): ``(n, k, *shape) -> (n, k, *shape)``."""
        ...

    def rows(self, index: Tensor | slice) -> Self:
        """The samples at ``index``."""
        ...

    def windows(self, window: Window) -> Self:
        """The part of the region in each window, as a region of its own."""
        ...

    def to(self, dtype: torch.dtype) -> Self:
        """The region in another precision."""
        ...


@final
@dataclass(frozen=True, slots=True)
class BoxRegion:
    """``lower <= x <= upper``, each ``(n, *shape)``."""

    lower: Tensor
    upper: Tensor

    @property
    def is_box(self) -> bool:
        """Always."""
        return True

    def hull(self) -> Box:
        """The box itself."""
        return Box(self.lower, self.upper)

    def minimum(self, A: Tensor) -> Tensor:
        """Centre minus radius."""
        centre, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        if A.requires_grad and not (self.lower.requires_grad or self.upper.requires_grad):
            return _Least.apply(A, centre.unsqueeze(1), radius.unsqueeze(1))
        return dot(A, centre.unsqueeze(1)) - dot(A.abs(), radius.unsqueeze(1))

    def argmin(self, A: Tensor) -> Tensor:
        """The corner against the sign of the coefficients."""
        return torch.where(A > 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def rows(self, index: Tensor | slice) -> BoxRegion:
        """The samples at ``index``."""
        return BoxRegion(self.lower[index], self.upper[index])

    def windows(self, window: Window) -> BoxRegion:
        """The part of the box in each window."""
        return BoxRegion(*window.gather_all(self.lower, self.upper))

    def to(self, dtype: torch.dtype) -> BoxRegion:
        """The box in another precision, rounded to nearest."""
        return BoxRegion(self.lower.to(dtype), self.upper.to(dtype))


class _Least(torch.autograd.Function):
    """The least value over a fixed box; its gradient is the corner that attains it."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, centre: Tensor, radius: Tensor) -> Tensor:  # type: ignore[override]
        corner = torch.addcmul(centre, A.sign(), radius, value=-1.0)
        ctx.save_for_backward(corner)
        return flattened(A * corner, 2).sum(2)

    @staticmethod
    def backward(ctx: Any, value: Tensor) -> Any:  # type: ignore[override]
        (corner,) = ctx.saved_tensors
        return value.reshape(*value.shape, *[1] * (corner.dim() - 2)) * corner, None, None


@final
@dataclass(frozen=True, slots=True)
class BallRegion:
    """``||x - centre|| <= eps`` cut with the box ``lower <= x <= upper``, which holds the centre.

    Attributes:
        centre: Clean inputs ``(n, *shape)``.
        eps: Radii ``(n,)``; for l0 the number of elements that may change.
        norm: ``"l2"``, ``"l1"`` or ``"l0"``; for linf use a ``BoxRegion``.
        lower: Least inputs, ``(n, *shape)``.
        upper: Greatest inputs.
    """

    centre: Tensor
    eps: Tensor
    norm: Norm
    lower: Tensor
    upper: Tensor

    @property
    def is_box(self) -> bool:
        """Never."""
        return False

    def hull(self) -> Box:
        """The domain for l0, else its part within ``eps`` of the centre."""
        if self.norm == "l0":
            return Box(self.lower, self.upper)
        eps = self.eps.reshape(-1, *[1] * (self.centre.dim() - 1))
        return Box(
            torch.maximum(self.lower, self.centre - eps),
            torch.minimum(self.upper, self.centre + eps),
        )

    def minimum(self, A: Tensor) -> Tensor:
        """``A . centre`` minus the largest gain within the norm's budget."""
        return dot(A, self.centre.unsqueeze(1)) - self._gain(A)

    def _gain(self, A: Tensor) -> Tensor:
        """Largest ``-A . d``: with ``g = |A|`` and ``c`` the room of each element, a knapsack."""
        flat, room = flattened(A, 2), flattened(self._room(A), 2)
        gain, eps = flat.abs(), self.eps.reshape(-1, 1)
        if self.norm == "l0":
            values = (gain * room).sort(2, descending=True).values
            picked = torch.arange(1, values.shape[2] + 1, device=A.device) <= eps.unsqueeze(2)
            return (values * picked).sum(2)
        if self.norm == "l1":
            price = _l1_price(gain.detach(), room.detach(), eps.detach())
            # Any price >= 0 bounds the gain from above, so rounding of the price does no harm ...
            dual = ((gain - price.unsqueeze(2)).clamp(min=0) * room).sum(2) + price * eps
            # ... while gradients come from the maximiser, where the dual has kinks.
            primal = (gain * _l1_step(gain, room, eps.unsqueeze(2))).sum(2)
            return dual.detach() + (primal - primal.detach())
        return _l2_gain(gain, room, eps)

    def _room(self, A: Tensor) -> Tensor:
        """How far each element can move against its coefficient."""
        down, up = (self.centre - self.lower).unsqueeze(1), (self.upper - self.centre).unsqueeze(1)
        return torch.where(A > 0, down, up)

    def argmin(self, A: Tensor) -> Tensor:
        """The centre moved by the maximiser of the gain."""
        flat, room = flattened(A.detach(), 2), flattened(self._room(A), 2)
        gain, eps = flat.abs(), self.eps.reshape(-1, 1, 1)
        order = (gain * room if self.norm == "l0" else gain).argsort(2, descending=True)
        room = room.expand_as(gain)
        sorted_room = room.gather(2, order)
        if self.norm == "l2":
            step = _l2_step(gain, room, eps.squeeze(2))[1]
        elif self.norm == "l1":
            step = _l1_step(gain, room, eps)
        else:
            rank = torch.arange(1, gain.shape[2] + 1, device=A.device)
            step = torch.zeros_like(gain).scatter(
                2, order, torch.where(rank <= eps, sorted_room, 0.0)
            )
        return self.centre.unsqueeze(1) - (flat.sign() * step).reshape(A.shape)

    def rows(self, index: Tensor | slice) -> BallRegion:
        """The samples at ``index``."""
        return BallRegion(
            self.centre[index], self.eps[index], self.norm, self.lower[index], self.upper[index]
        )

    def windows(self, window: Window) -> BallRegion:
        """The ball seen through each window: elements outside have coefficient zero."""
        parts = [window.gather(t) for t in (self.centre, self.lower, self.upper)]
        return BallRegion(parts[0], self.eps[window.sample], self.norm, parts[1], parts[2])

    def to(self, dtype: torch.dtype) -> BallRegion:
        """The ball in another precision."""
        moved = [t.to(dtype) for t in (self.centre, self.eps, self.lower, self.upper)]
        return BallRegion(moved[0], moved[1], self.norm, moved[2], moved[3])


def _l1_price(gain: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Gain per unit of budget at the margin of the fractional knapsack, ``(n, k)``."""
    order = gain.sort(2, descending=True)
    used = room.expand_as(gain).gather(2, order.indices).cumsum(2)
    full = used >= eps.unsqueeze(2)
    first = full.to(torch.uint8).argmax(2, keepdim=True)
    price = order.values.gather(2, first).squeeze(2)
    return torch.where(full.any(2), price, torch.zeros_like(price))


def _l1_step(gain: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The fractional knapsack's solution: elements are filled in the order of their gain."""
    order = gain.argsort(2, descending=True)
    sorted_room = room.expand_as(gain).gather(2, order)
    spent = sorted_room.cumsum(2) - sorted_room
    filled = torch.minimum(sorted_room, (eps - spent).clamp(min=0))
    return torch.zeros_like(gain).scatter(2, order, filled)


def _l2_step(gain: Tensor, room: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The multiplier ``m`` and the maximiser ``d = min(gain / m, room)`` of ``_l2_gain``'s dual."""
    g, tiny = gain.detach(), torch.finfo(gain.dtype).tiny
    high = g.norm(dim=2).clamp(min=tiny) / eps.clamp(min=tiny)  # without the box the optimum
    high = high.clamp(max=torch.finfo(gain.dtype).max / 4)  # a ball of radius zero: d is 0 anyway
    low = torch.zeros_like(high)
    for _ in range(40):
        middle = (low + high) / 2
        d = torch.minimum(g / middle.clamp(min=tiny).unsqueeze(2), room)
        inside = (d * d).sum(2) <= eps * eps
        high, low = torch.where(inside, middle, high), torch.where(inside, low, middle)
    m = high.clamp(min=tiny)
    return m, torch.minimum(g / m.unsqueeze(2), room).detach()


def _l2_gain(gain: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Lagrange dual in the multiplier ``m`` of ``(||d||^2 - eps^2) / 2``; any ``m > 0`` is sound.

    ``min_m max_{0 <= d <= room} g d - m (d^2 - eps^2) / 2``, solved by bisection on ``m``. The
    maximiser is held fixed for gradients (envelope theorem).
    """
    m, d = _l2_step(gain, room, eps)
    value = (gain * d).sum(2) - m / 2 * ((d * d).sum(2) - eps * eps)
    return torch.minimum(value, gain.norm(dim=2) * eps)


def threat_region(
    x: Tensor,
    eps: Tensor | float,
    norm: Norm,
    lower: Tensor | float = 0.0,
    upper: Tensor | float = 1.0,
) -> Region:
    """The norm ball of radius ``eps`` around ``x (n, *shape)`` cut with the domain's box.

    Args:
        x: Clean inputs.
        eps: Radius, or one per sample ``(n,)``.
        norm: The norm; l0 counts changed elements.
        lower: Least value of the domain, broadcast to ``x``.
        upper: Greatest value of the domain.

    Raises:
        InputError: ``x`` lies outside its domain, ``eps`` is negative or the norm unknown.
    """
    low, high = (
        torch.as_tensor(b, dtype=x.dtype, device=x.device).expand_as(x) for b in (lower, upper)
    )
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
    if bool((radius < 0).any()):
        raise ThreatError(f"eps must be >= 0; got {float(radius.min())}")
    if bool(((x < low) | (x > high)).any()):
        raise DataError(
            f"inputs range from {float(x.min())} to {float(x.max())}, outside their domain "
            f"[{float(low.min())}, {float(high.max())}]; give their range as "
            "domain=(least, greatest)"
        )
    if norm == "linf":
        width = radius.reshape(-1, *[1] * (x.dim() - 1))
        return BoxRegion(torch.maximum(low, x - width), torch.minimum(high, x + width))
    if norm not in ("l2", "l1", "l0"):
        raise ThreatError(f"norm {norm!r} is unknown; allowed: linf, l2, l1, l0")
    return BallRegion(x, radius, norm, low, high)
