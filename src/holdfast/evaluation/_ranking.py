"""Which wrong classes the search for smallest changes goes for, told by gradients at x.

A linear step towards a class reaches its boundary in the linear model; the logits there say which
share of the gap it really closed. Its length divided by that share is the secant: how far the
boundary seems to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks._domain import ends_of
from holdfast.attacks._hyperplane import length, shortest
from holdfast.attacks.base import Objective, Query
from holdfast.attacks.malt import class_gaps
from holdfast.engine.cascade import rank_wrong
from holdfast.rows import take

if TYPE_CHECKING:
    from holdfast.evaluation._nearest import Search

CANDIDATES = {"linf": 5, "l1": 3}  # likeliest wrong classes that are compared, where that pays
TRUSTED = 0.5  # share of the gap that a linear step must close for its gradient to be believed
FORWARD = 3  # passes of a ranking; and one backward pass for each class
HONEST = (0.9, 1.1)  # l2: of linear distances, where gradients at x are believed
RIVALS = 3  # l2: likeliest classes that nobody went for, whose gradients are then looked at
CHECKING, ASKING = 3, 1 + RIVALS  # passes of that: of every sample, and of those believed


class Ranking(NamedTuple):
    """Wrong classes of samples; distances are secants, infinite where a gradient is not believed.

    Attributes:
        classes: ``(m, n)``, nearest first where gradients prove it, else likeliest first.
        secant: How far the first of them seems ``(m,)``, float64.
        spare: The rival that it was compared with ``(m,)``.
        spare_secant: How far that one seems ``(m,)``, float64.
    """

    classes: Tensor
    secant: Tensor
    spare: Tensor
    spare_secant: Tensor


class Rivals(NamedTuple):
    """What gradients at x say once a boundary is known; see :func:`rivals`.

    Attributes:
        is_honest: Whether the boundary lies about as far as they said ``(n,)``.
        nearer: Of those: a class not gone for yet that they say is nearer, else -1 ``(n,)``.
    """

    is_honest: Tensor
    nearer: Tensor


def rivals(search: Search, n_tried: int, size: int) -> Rivals:
    """Compare the distances known with those of the linear model; ``n_tried``: classes gone for."""
    found = Rivals(torch.zeros_like(search.distance) > 0, torch.full_like(search.y, -1))
    known = search.open[search.distance[search.open].isfinite()]
    others = rank_wrong(search.logits, search.y, n_tried + RIVALS)[:, n_tried:]
    for rows in known.split(size):
        reached = rank_wrong(search.model.logits(search.x_adv[rows]), search.y[rows], 1)
        linear = _linear_distances(search, rows, reached)
        share = search.distance[rows, None] / linear
        is_honest = ((share >= HONEST[0]) & (share <= HONEST[1]))[:, 0]
        search.forward[rows] += 2
        search.backward[rows] += 1
        found.is_honest[rows] = is_honest
        rows, linear = rows[is_honest], linear[is_honest]
        if others.shape[1] == 0 or len(rows) == 0:
            continue
        best = _linear_distances(search, rows, others[rows]).min(1)
        nearest = others[rows].gather(1, best.indices[:, None])
        found.nearer[rows] = torch.where(best.values[:, None] < linear, nearest, -1)[:, 0]
        search.forward[rows] += 1
        search.backward[rows] += others.shape[1]
    return found


def _linear_distances(search: Search, rows: Tensor, classes: Tensor) -> Tensor:
    """How far the boundaries of ``classes`` ``(m, n)`` are in the linear model, inside the box."""
    steps, gaps = _linear_steps(search, rows, classes)
    return length(steps.flatten(0, 1), search.norm).double().reshape(gaps.shape)


def rank(search: Search, n: int, size: int) -> Ranking:
    """Order the ``n`` likeliest wrong classes, at least two.

    The nearest goes first by the smallest change inside the box that reaches a class in the linear
    model. Where secants do not prove it nearer than the likeliest, the order is by likelihood.
    """
    classes = rank_wrong(search.logits, search.y, n)
    far = torch.full_like(search.distance, torch.inf)
    found = Ranking(classes, far, classes[:, 0].clone(), far.clone())
    for rows in search.open.split(max(1, size // n)):
        part = _ranked(search, rows, classes[rows])
        for whole, piece in zip(found, part, strict=True):
            whole[rows] = piece
    search.forward[search.open] += FORWARD
    search.backward[search.open] += n
    return found


def _ranked(search: Search, rows: Tensor, classes: Tensor) -> Ranking:
    steps, gaps = _linear_steps(search, rows, classes)
    reach = length(steps.flatten(0, 1), search.norm).double().reshape(gaps.shape)
    order = reach.argsort(dim=1, stable=True)
    near, likely = order[:, :1], torch.zeros_like(order[:, :1])
    is_likely = near == likely
    rival = torch.where(is_likely, order[:, 1:2], likely)
    secant, rival_secant = (
        _secant(reach.gather(1, chosen), _closed(search, rows, classes, chosen, steps, gaps))
        for chosen in (near, rival)
    )
    is_proven = secant.isfinite() & (is_likely | (secant <= rival_secant))
    is_first = is_proven | is_likely
    spare = classes.gather(1, torch.where(is_first, rival, near))
    return Ranking(
        torch.where(is_proven, classes.gather(1, order), classes),
        torch.where(is_first, secant, rival_secant)[:, 0],
        spare[:, 0],
        torch.where(is_first, rival_secant, secant)[:, 0],
    )


def _secant(reach: Tensor, share: Tensor) -> Tensor:
    return torch.where(share >= TRUSTED, reach / share, torch.inf)


def _linear_steps(search: Search, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Towards each of ``classes`` ``(m, n)``: the linear step ``(m, n, *shape)``, and the gap."""
    x, y = search.x[rows], search.y[rows]
    box = ends_of(take(search.allowed, rows))
    objective = Objective(class_gaps, (y, classes), classes.shape[1])
    (answer,) = search.model.search([Query(x, objective)])
    pairs = zip(answer.losses.unbind(1), answer.gradients.unbind(1), strict=True)
    return torch.stack([shortest(search.norm, x, w, -g, box) for g, w in pairs], 1), answer.losses


def _closed(
    search: Search, rows: Tensor, classes: Tensor, chosen: Tensor, steps: Tensor, gaps: Tensor
) -> Tensor:
    """The share of its gap that the chosen class's step closes ``(m, 1)``."""
    step = steps[torch.arange(len(rows), device=rows.device), chosen[:, 0]]
    z, y = search.model.logits(search.x[rows] + step), search.y[rows][:, None]
    after = z.gather(1, classes.gather(1, chosen)) - z.gather(1, y)
    return 1 - after.double() / gaps.gather(1, chosen).double()
