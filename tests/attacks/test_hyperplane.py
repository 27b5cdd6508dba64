"""The smallest change inside a box that reaches a hyperplane, against general solvers."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from holdfast.attacks._hyperplane import shortest

NORMS = ["linf", "l2", "l1", "l0"]


def problem(seed, m=7, box=(0.0, 1.0)):
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-0.2, 1.2, m), 0, 1) * (box[1] - box[0]) + box[0]
    w = rng.normal(size=m)
    w[rng.integers(m)] = 0.0
    return x, w


def reach(x, w, sign, box):
    """The most that ``w . d`` can rise (sign 1) or fall (sign -1) inside the box."""
    return float((np.abs(w) * np.where(sign * w > 0, box[1] - x, x - box[0])).sum())


def solved(norm, x, w, gap, box):
    """The smallest size of a change that reaches the hyperplane: general solvers, all supports."""
    m, room = len(x), list(zip(box[0] - x, box[1] - x, strict=True))
    if norm == "l2":
        found = minimize(
            lambda d: d @ d,
            np.zeros(m),
            jac=lambda d: 2 * d,
            bounds=room,
            constraints={"type": "eq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        return float(np.sqrt(found.fun))
    if norm == "l0":
        best = [
            size
            for size in range(m + 1)
            for chosen in combinations(range(m), size)
            if reach(x[list(chosen)], w[list(chosen)], np.sign(gap), box) >= abs(gap) - 1e-9
        ]
        return float(best[0])
    # d = p - q with p, q >= 0; linf: one more variable bounds them all
    parts = [(0, max(r[1], 0)) for r in room] + [(0, max(-r[0], 0)) for r in room]
    equal = np.concatenate([w, -w])
    if norm == "l1":
        found = linprog(np.ones(2 * m), A_eq=equal[None], b_eq=[gap], bounds=parts)
        return float(found.fun)
    below = np.hstack([np.eye(2 * m), -np.ones((2 * m, 1))])
    found = linprog(
        np.append(np.zeros(2 * m), 1.0),
        A_ub=below,
        b_ub=np.zeros(2 * m),
        A_eq=np.append(equal, 0.0)[None],
        b_eq=[gap],
        bounds=[*parts, (0, None)],
    )
    return float(found.fun)


def size(d, norm):
    orders = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}
    return float(np.linalg.norm(d, orders[norm]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [(0.0, 1.0), (-3.0, 5.0)])
def test_it_is_the_smallest(norm, box):
    for seed in range(12):
        x, w = problem(seed, box=box)
        sign = 1 if seed % 2 else -1
        gap = sign * (0.1 + 0.08 * seed / 2) * reach(x, w, sign, box)
        points, normals = torch.tensor(x)[None], torch.tensor(w)[None]
        ends = torch.tensor(box[0]), torch.tensor(box[1])
        wanted = torch.tensor([gap], dtype=torch.float64)
        d = shortest(norm, points, normals, wanted, ends)[0].numpy()
        assert size(d, norm) == pytest.approx(solved(norm, x, w, gap, box), rel=1e-5)
        assert (x + d >= box[0] - 1e-12).all()
        assert (x + d <= box[1] + 1e-12).all()
        reached = sign * float(w @ d)
        assert reached >= abs(gap) - 1e-9
        if norm != "l0":
            assert reached == pytest.approx(abs(gap))


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_box_does_not_reach_it_goes_as_far_as_it_can(norm):
    x, w = (torch.tensor(v)[None] for v in problem(5))
    d = shortest(norm, x, w, torch.tensor([1e3]), (torch.tensor(0.0), torch.tensor(1.0)))
    corner = torch.where(w > 0, 1 - x, torch.where(w < 0, -x, 0.0))
    torch.testing.assert_close(d, corner)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_are_their_own_and_nothing_moves_without_a_normal(norm):
    pairs = [problem(seed) for seed in range(5)]
    x, w = (torch.tensor(np.stack(v)) for v in zip(*pairs, strict=True))
    w[3] = 0.0
    gap, ends = torch.linspace(0.1, 0.9, 5).double(), (torch.tensor(0.0), torch.tensor(1.0))
    together = shortest(norm, x, w, gap, ends)
    assert (together[3] == 0).all()
    for i in range(5):
        alone = shortest(norm, x[i : i + 1], w[i : i + 1], gap[i : i + 1], ends)
        assert torch.equal(alone[0], together[i])
