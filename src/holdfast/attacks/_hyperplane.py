"""The smallest change inside a box that reaches a hyperplane, exactly, in every norm.

``min ||d||`` such that ``w . d = gap`` and ``lower <= x + d <= upper``: every coordinate moves with
the sign that helps, as far as its room; what differs between norms is who moves first. Where the
whole box does not reach the hyperplane, the answer is the corner that comes nearest to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks.base import Answer

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf, "l0": torch.inf}
"""The exponent of the norm that measures gradients: a distance is ``|f| / ||w||_dual``."""
LENGTH = {"linf": torch.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
TINY = 1e-12  # Croce and Hein's; keeps distances finite where a gradient is zero
_MAX_ROUNDS = 60  # Newton on a concave piecewise linear function; a handful in practice


def length(d: Tensor, norm: str) -> Tensor:
    """``||d||`` of changes ``(n, *shape)`` -> ``(n,)``."""
    if norm == "l2":
        return d.flatten(1).square().sum(1).sqrt()  # pairwise summation: see perturbations.l2
    return torch.linalg.vector_norm(d.flatten(1), ord=LENGTH[norm], dim=1)


def dual_length(w: Tensor, norm: str) -> Tensor:
    """The dual norm of gradients ``(..., m)`` -> ``(...)``."""
    if norm == "l2":
        return w.square().sum(-1).sqrt()
    return torch.linalg.vector_norm(w, ord=DUAL[norm], dim=-1)


def nearest_class(answer: Answer, norm: str) -> tuple[Tensor, Tensor]:
    """Of the classes asked about, the one whose linearised boundary is nearest.

    Returns its gap ``(n,)`` and its gradient ``(n, *shape)``.
    """
    gaps, gradients = answer.losses, answer.gradients
    distance = gaps.abs() / (TINY + dual_length(gradients.flatten(2), norm))
    chosen = distance.argmin(1)
    row = torch.arange(len(chosen), device=chosen.device)
    return gaps[row, chosen], gradients[row, chosen]


def shortest(norm: str, x: Tensor, w: Tensor, gap: Tensor, box: tuple[Tensor, Tensor]) -> Tensor:
    """The change ``(n, *shape)`` that reaches ``w . d = gap`` and is smallest in ``norm``.

    Args:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        x: Where it starts ``(n, *shape)``, inside the box.
        w: Normals ``(n, *shape)``; zero ones give no change.
        gap: What the inner product must change by ``(n,)``, of either sign.
        box: Lower and upper end, broadcast against ``x``.
    """
    w = (w.double() * gap.double().sign().reshape(-1, *(1,) * (w.ndim - 1))).flatten(1)
    room = torch.where(w > 0, (box[1] - x).double().flatten(1), (x - box[0]).double().flatten(1))
    room = torch.where(w != 0, room.clamp_min(0.0), 0.0)
    size, needed = w.abs(), gap.double().abs()
    if norm == "linf":
        moved = torch.minimum(_level(size, size * room, needed)[:, None], room)
    elif norm == "l2":
        moved = torch.minimum(_level(size.square(), size * room, needed)[:, None] * size, room)
    else:
        moved = _filled(size, room, needed, by_gain=norm == "l0")
    return (w.sign() * moved).to(x.dtype).reshape(x.shape)


def _level(slope: Tensor, limit: Tensor, needed: Tensor) -> Tensor:
    """The smallest s with ``sum(min(s slope, limit)) >= needed``, ``(n, m) -> (n,)`` float64.

    Newton from below never overshoots a concave function. A row that has arrived stays where it is,
    however many rounds its neighbours need. Where the limits sum to less, all of them are reached.
    """
    s = torch.zeros_like(needed)
    for _ in range(_MAX_ROUNDS):
        is_full = s[:, None] * slope >= limit
        free = torch.where(is_full, 0.0, slope).sum(1)
        rest = needed - torch.where(is_full, limit, 0.0).sum(1)
        new = torch.where(free > 0, rest / torch.where(free > 0, free, 1.0), s)
        grows = new > s * (1 + 1e-14)
        if not bool(grows.any()):
            break
        s = torch.where(grows, new, s)
    return s


def _filled(size: Tensor, room: Tensor, needed: Tensor, by_gain: bool) -> Tensor:
    """How far each coordinate moves if the best ones are used up first ``(n, m)``.

    Best are the largest slopes (for l1), or with ``by_gain`` the largest slopes times rooms (for
    l0, where coordinates that move at all go all the way).
    """
    gain = size * room
    order = (gain if by_gain else size).argsort(dim=1, descending=True, stable=True)
    gained = gain.gather(1, order)
    before = gained.cumsum(1) - gained
    rest = (needed[:, None] - before).clamp_min(0.0)
    if by_gain:
        share = (rest > 0).to(gain.dtype)
    else:
        share = torch.where(gained > 0, (rest / gained.clamp_min(1e-300)).clamp_max(1.0), 0.0)
    return torch.zeros_like(room).scatter(1, order, share) * room
