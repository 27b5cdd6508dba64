"""Attackers who know the planted defence: how much of its number is real.

Each is built for one defence and told everything about it. What it leaves is not what an audit can
be asked for without help, but the yardstick for it: where it leaves more than the network without
the defence does, the defence changes the function and not its gradients alone. What no attacker of
a random model can break is estimated from below (:func:`fixed_draws`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.contracts.masking import RandomResizing, RippledInput, WinnersTakeAll
from holdfast.rows import like

FIRST, LAST, MOMENTUM = 0.25, 0.01, 0.75  # steps in half widths of the box; memory of gradients
N_VOTES = 100
N_FIXED, FIXED_STEPS, FIXED_ROWS = 32, 100, 16  # draws of a set, steps, samples at a time
NARROWING = 100  # times that a smooth stand-in is narrower at the end
Box = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits, label, target or -1)`` -> ``(n,)``, to be maximised."""


def left(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor | None:
    """The samples that the defence's own attacker leaves; None: there is no such attacker."""
    attacks = {RippledInput: _wave, RandomResizing: _resizing}
    attack = attacks.get(type(net), _winners if _has_winners(net) else None)
    if attack is None:
        return None
    torch.manual_seed(0)
    open_ = (_votes(net, x) == y).nonzero().squeeze(1)
    box = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    for points in attack(net, x, y, box):
        rows = open_
        if len(rows) == 0:
            break
        found = points(rows)
        assert bool(((found >= box[0][rows]) & (found <= box[1][rows])).all())
        open_ = rows[_votes(net, found) == y[rows]]
    return open_


def fixed_draws(net: nn.Module, x: Tensor, y: Tensor, eps: float, rows: Tensor) -> float:
    """Share of the samples that nobody can break, of those in ``rows``; an estimate.

    Whatever the change, the share of right answers is, on average over sets of draws, at least what
    the worst change for that very set leaves. Where more than half of a set stays right at its
    worst change, no change makes the commonest answer wrong. The worst is sought by gradients of
    the whole set, a network without randomness: an attack, no proof.
    """
    kept = 0
    for number, part in enumerate(rows.split(FIXED_ROWS)):
        kept += int((_least_right(net, x[part], y[part], eps, number) > 0.5).sum())
    return kept / len(y)


def _least_right(net: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Share of right answers over a fixed set of draws, at the worst change met ``(m,)``."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    torch.manual_seed(seed)
    z, velocity, least = low + (high - low) * torch.rand_like(x), torch.zeros_like(x), None
    labels = y.repeat_interleave(N_FIXED)
    for step in range(FIXED_STEPS):
        leaf = z.clone().requires_grad_(True)
        torch.manual_seed(seed)  # the same draws at every step
        logits = net(leaf.repeat_interleave(N_FIXED, 0))
        right = (logits.argmax(1) == labels).float().reshape(len(x), -1).mean(1)
        least = right if least is None else torch.minimum(least, right)
        value = _wrong(logits, labels, torch.full_like(labels, -1)).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        gradient = gradient / like(gradient.flatten(1).abs().mean(1).clamp_min(1e-30), z)
        velocity = MOMENTUM * velocity + gradient
        length = eps * FIRST * (LAST / FIRST) ** (step / FIXED_STEPS)
        z = torch.minimum(torch.maximum(z + length * velocity.sign(), low), high)
    assert least is not None
    return least


Run = Callable[[Tensor], Tensor]
"""Rows ``(m,)`` -> one allowed point for each."""


def _wave(net: nn.Module, x: Tensor, y: Tensor, box: Box) -> Iterator[Run]:
    """The network inside, attacked in the image of the box under the wave; then back, exactly."""
    assert isinstance(net, RippledInput)
    inner, grid = net.net, torch.linspace(0, 1, 5001)

    def course(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        path = lower.flatten()[:, None] + (upper - lower).flatten()[:, None] * grid
        return path, path + net.size * torch.sin(net.waves * path)

    def image() -> Box:
        parts = [course(low, high)[1] for low, high in zip(*box, strict=True)]
        low, high = (torch.stack([f(p, 1) for p in parts]) for f in (torch.amin, torch.amax))
        return low.reshape(x.shape), high.reshape(x.shape)

    def back(rows: Tensor, values: Tensor) -> Tensor:
        found = x[rows].clone()
        for i in (inner(values).argmax(1) != y[rows]).nonzero().squeeze(1):
            path, there = course(box[0][rows[i]], box[1][rows[i]])
            nearest = (there - values[i].flatten()[:, None]).abs().argmin(1, keepdim=True)
            found[i] = path.gather(1, nearest).reshape(found[i].shape)
        return torch.minimum(torch.maximum(found, box[0][rows]), box[1][rows])

    order, (low, high) = _likeliest(inner, x, y), image()
    for rank in (-1, *range(9)):

        def run(rows: Tensor, rank: int = rank) -> Tensor:
            target = order[rows, rank] if rank >= 0 else torch.full_like(rows, -1)
            values = _ascended(inner, low[rows], high[rows], y[rows], target, 100, _margin)
            return back(rows, values)

        yield run


def _resizing(net: nn.Module, x: Tensor, y: Tensor, box: Box) -> Iterator[Run]:
    """A fresh draw at every step; last, for how often the answer is wrong in place of the mean."""
    order = _likeliest(net, x, y)
    plans: list[tuple[int, int, Loss]] = [(-1, 300, _margin), (-1, 300, _wrong)]
    plans += [(rank, 200, loss) for rank in (0, 1) for loss in (_margin, _wrong)]
    for rank, steps, loss in plans:

        def run(rows: Tensor, plan: tuple[int, int, Loss] = (rank, steps, loss)) -> Tensor:
            target = order[rows, plan[0]] if plan[0] >= 0 else torch.full_like(rows, -1)
            return _ascended(net, box[0][rows], box[1][rows], y[rows], target, plan[1], plan[2])

        yield run


def _winners(net: nn.Module, x: Tensor, y: Tensor, box: Box) -> Iterator[Run]:
    """Backward, a unit's chance to win is a sigmoid, ever steeper, of its lead over the losers."""
    order = _likeliest(net, x, y)
    plans = [(width, -1, 300) for width in (1.0, 0.25, 1.0)]
    plans += [(1.0, rank, 300) for rank in range(3)]
    for width, rank, steps in plans:

        def run(rows: Tensor, plan: tuple[float, int, int] = (width, rank, steps)) -> Tensor:
            target = order[rows, plan[1]] if plan[1] >= 0 else torch.full_like(rows, -1)
            soft = _softened(net, plan[0])
            return _ascended(soft, box[0][rows], box[1][rows], y[rows], target, plan[2], _margin)

        yield run


class _Softened(nn.Module):
    """Winners take all forwards, a smooth share of every unit backwards."""

    def __init__(self, share: float, width: float) -> None:
        super().__init__()
        self.share, self.first, self.width = share, width, width

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        edge = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        gap = flat - edge
        soft = flat * torch.sigmoid(gap / (self.width * gap.detach().abs().mean(1, keepdim=True)))
        hard = flat * (flat >= edge).float()
        return (hard.detach() + soft - soft.detach()).reshape(x.shape)


def _softened(net: nn.Module, width: float) -> nn.Module:
    soft = copy.deepcopy(net)
    for name, module in net.named_modules():
        if isinstance(module, WinnersTakeAll):
            parent, _, child = name.rpartition(".")
            setattr(soft.get_submodule(parent), child, _Softened(module.share, width))
    return soft


def _narrow(net: nn.Module, progress: float) -> None:
    for module in net.modules():
        if isinstance(module, _Softened):
            module.width = module.first * NARROWING**-progress


def _has_winners(net: nn.Module) -> bool:
    return any(isinstance(module, WinnersTakeAll) for module in net.modules())


# -------------------------------------------------------------------- shared


def _margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None]).squeeze(1)
    best = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    wanted = logits.gather(1, target.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(target >= 0, wanted, best) - own


def _wrong(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Smooth share of wrong answers: draws that are far from either side count little."""
    return torch.sigmoid(_margin(logits, y, target))


def _ascended(
    net: nn.Module, low: Tensor, high: Tensor, y: Tensor, target: Tensor, steps: int, loss: Loss
) -> Tensor:
    """Sign steps with momentum that shrink geometrically; the first point that fools, or the last.

    A random network's single answers fool by luck: there it is always the last.
    """
    z = low + (high - low) * torch.rand_like(low)
    velocity, result = torch.zeros_like(z), z.clone()
    half = like((high - low).flatten(1).amax(1) / 2, z)
    is_random = isinstance(net, RandomResizing)
    fooled = torch.zeros(len(z), dtype=torch.bool)
    for step in range(steps):
        leaf = z.clone().requires_grad_(True)
        _narrow(net, step / steps)
        logits = net(leaf)
        value = loss(logits, y, target)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        wins = (logits.argmax(1) != y) & ~fooled
        result[wins], fooled = z[wins], fooled | wins
        if bool(fooled.all()) and not is_random:
            break
        if loss is not _wrong:  # there, sizes are what counts
            gradient = gradient / like(gradient.flatten(1).abs().mean(1).clamp_min(1e-30), z)
        velocity = MOMENTUM * velocity + gradient
        length = half * FIRST * (LAST / FIRST) ** (step / steps)
        z = torch.minimum(torch.maximum(z + length * velocity.sign(), low), high)
    if is_random:
        return z
    result[~fooled] = z[~fooled]
    return result


@torch.no_grad()
def _votes(net: nn.Module, x: Tensor) -> Tensor:
    """The commonest of many answers where they are random, as an audit judges."""
    n_votes = N_VOTES if isinstance(net, RandomResizing) else 1
    votes = sum(F.one_hot(net(x).argmax(1), 10) for _ in range(n_votes))
    assert isinstance(votes, Tensor)
    return votes.argmax(1)


@torch.no_grad()
def _likeliest(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Wrong classes by the mean of some answers, likeliest first ``(n, 9)``."""
    logits = torch.stack([net(x) for _ in range(16)]).mean(0)
    return logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :9]
