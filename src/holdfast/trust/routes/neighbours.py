"""Gradients of a smoothed copy of the model: the mean over random neighbours of a point.

Where a model's surface is rough at a scale below the allowed change (steps, waves, units that
switch), its gradient at one point says nothing of the slope at the attacker's scale, but the mean
over a neighbourhood of that scale does: it is the gradient of the model convolved with the noise
(Athalye et al., 2018, section 4.1; Tramer et al., 2020, arXiv:2002.08347, section 5, on
k-winners-take-all).

Noise hangs on the point alone, by a hash of its bits: the same point has the same neighbours
whatever batch it stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.attacks.base import Answer, Query
from holdfast.engine.random import Rng
from holdfast.model import Model
from holdfast.trust.routes._base import Way, described

_ODD = -7046029254386353131


@final
@dataclass(frozen=True)
class Neighbours(Way):
    """The mean of losses and gradients over ``draws`` points within ``size`` of each point.

    Attributes:
        draws: Neighbours per point, in pairs on opposite sides.
        size: Half width of the uniform noise on every coordinate, in input units.
        inner: The route of each neighbour's gradient.
    """

    name: ClassVar[str] = "neighbours"

    draws: int = 8
    size: float = 0.03
    inner: Way | None = None

    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """The points' own logits, their neighbours' mean gradient."""
        own = model.averaged([replace(q, objective=None, route=None) for q in queries], model.draws)
        sums: list[Answer] | None = None
        for number in range(self.draws):
            near = [replace(q, points=self._moved(model, q.points, number)) for q in queries]
            found = self._inside(model, near)
            sums = (
                found if sums is None else [_plus(a, b) for a, b in zip(sums, found, strict=True)]
            )
        assert sums is not None
        return [
            Answer(o.logits, s.losses / self.draws, s.gradients / self.draws)
            for o, s in zip(own, sums, strict=True)
        ]

    def _moved(self, model: Model, points: Tensor, number: int) -> Tensor:
        rng = Rng(keys(points)).fold(number // 2)
        noise = (2 * rng.uniform(tuple(points.shape[1:])) - 1).to(points.dtype)
        sign = 1 if number % 2 == 0 else -1
        lower, upper = model.domain.tensors(points)
        return torch.minimum(torch.maximum(points + sign * self.size * noise, lower), upper)

    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """One more forward pass than there are neighbours."""
        forward, backward = self._inner_cost(draws, n_backward)
        return draws + self.draws * forward, self.draws * backward

    def describe(self) -> str:
        """``gradients averaged over 8 neighbours``."""
        return described(self.inner, f"gradients averaged over {self.draws} neighbours")


def keys(points: Tensor) -> Tensor:
    """A hash of every point's bits ``(n,)`` int64."""
    bits = points.detach().float().contiguous().flatten(1).view(torch.int32).to(torch.int64)
    index = torch.arange(1, bits.shape[1] + 1, device=bits.device, dtype=torch.int64) * _ODD
    mixed = (bits + index) * -4658895280553007687
    return (mixed ^ (mixed >> 29)).sum(1)


def _plus(a: Answer, b: Answer) -> Answer:
    return Answer(a.logits, a.losses + b.losses, a.gradients + b.gradients)


ROUTE = Neighbours
