"""Slow and exact: what the package computes fast, computed another way (numpy, float64)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, NonlinearConstraint, linprog, minimize

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class BoxedBall:
    """All u with ``||u - x|| <= eps`` and ``lower <= u <= upper``, for vectors of a few numbers."""

    norm: str
    x: Vector
    eps: float
    lower: Vector
    upper: Vector

    def excess(self, u: Vector) -> float:
        """How far u is outside: zero for members, in units of the norm or of a coordinate."""
        d = np.abs(u - self.x)
        size = {"linf": d.max(), "l2": np.sqrt((d**2).sum()), "l1": d.sum(), "l0": (d > 0).sum()}
        box = max((self.lower - u).max(), (u - self.upper).max())
        return max(0.0, float(size[self.norm] - self.eps), float(box))


def nearest_distance(ball: BoxedBall, z: Vector) -> float:
    """``min ||u - z||_2^2`` over the set: coordinates, all supports, or a quadratic programme."""
    clipped = np.clip(z, ball.lower, ball.upper)
    if ball.norm == "l0":
        return min(float(((u - z) ** 2).sum()) for u in _supported(ball, clipped))
    if ball.norm == "linf":
        u = np.clip(clipped, ball.x - ball.eps, ball.x + ball.eps)
        return float(((u - z) ** 2).sum())
    return _minimum(ball, lambda u: float(((u - z) ** 2).sum()), lambda u: 2 * (u - z))


def best_linear(ball: BoxedBall, g: Vector) -> float:
    """``max g (u - x)`` over the set: all supports, a general solver, or a linear programme."""
    if ball.norm == "l0":
        end = np.where(g > 0, ball.upper, ball.lower)
        return max(float(g @ (u - ball.x)) for u in _supported(ball, end))
    if ball.norm == "l2":
        return -_minimum(ball, lambda u: float(-g @ (u - ball.x)), lambda u: -g)
    # u = x + p - q with p, q >= 0
    room = np.concatenate([ball.upper - ball.x, ball.x - ball.lower])
    if ball.norm == "linf":
        found = linprog(-np.concatenate([g, -g]), bounds=[(0, min(ball.eps, r)) for r in room])
    else:
        total = np.ones((1, len(room)))
        found = linprog(-np.concatenate([g, -g]), total, [ball.eps], bounds=[(0, r) for r in room])
    assert found.success, found.message
    return -float(found.fun)


def _supported(ball: BoxedBall, wanted: Vector) -> list[Vector]:
    """``x`` with eps coordinates replaced by those of ``wanted``, in every way."""
    found = []
    for chosen in combinations(range(len(wanted)), min(len(wanted), int(ball.eps))):
        u = ball.x.copy()
        u[list(chosen)] = wanted[list(chosen)]
        found.append(u)
    return found


def _minimum(
    ball: BoxedBall, loss: Callable[[Vector], float], slope: Callable[[Vector], Vector]
) -> float:
    """The minimum of a smooth convex function over an l1 or l2 set (SLSQP)."""
    m = len(ball.x)
    if ball.eps == 0:
        return loss(ball.x)
    if ball.norm == "l2":
        split = np.eye(m)
        room = np.stack([ball.lower - ball.x, ball.upper - ball.x], 1)
        within = NonlinearConstraint(
            lambda v: ball.eps**2 - v @ v, 0, np.inf, jac=lambda v: -2 * v[None]
        )
    else:
        split = np.concatenate([np.eye(m), -np.eye(m)], 1)
        room = np.stack(
            [np.zeros(2 * m), np.concatenate([ball.upper - ball.x, ball.x - ball.lower])], 1
        )
        within = LinearConstraint(np.ones((1, 2 * m)), -np.inf, ball.eps)
    found = minimize(
        lambda v: loss(ball.x + split @ v),
        np.zeros(split.shape[1]),
        jac=lambda v: slope(ball.x + split @ v) @ split,
        bounds=room,
        constraints=[within],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return float(found.fun)
