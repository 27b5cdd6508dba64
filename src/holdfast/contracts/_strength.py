"""Contracts about strength: what an attack reaches where the best is known.

The shares asked for were set between what sound attacks reach and what planted defects reach, on
other seeds than those used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.base import Attack, Problem
from holdfast.contracts._drive import Trace, drive, pose
from holdfast.contracts._geometry import (
    Array,
    excess,
    flat,
    grid,
    largest_gain,
    length,
    smallest_radius,
)
from holdfast.contracts._toys import RADII, Affine, Net, Seesaw, inputs
from holdfast.contracts._violation import require
from holdfast.perturbations.ball import Ball
from holdfast.threat import Access

SINGLE_STEP = 2  # an attack with so few questions cannot search: the linear contract is its measure
LINEAR_SHARE = {Access.GRADIENTS: 0.95, Access.SCORES: 0.8, Access.LABELS: 0.5}
GRID_SHARE = {Access.GRADIENTS: 0.95, Access.SCORES: 0.9, Access.LABELS: 0.5}
COUNTING_SHARE = 0.85  # in l0 the allowed set falls into pieces, each with hills of its own
DETOUR = {Access.GRADIENTS: 1.25, Access.SCORES: 1.5, Access.LABELS: 2.0}  # of the shortest way
ESTIMATE_DETOUR = 1.5  # of an attack that ends where the answer first changes, as DeepFool does
WHOLE = {"linf": 1.0, "l2": math.sqrt(8), "l1": 8.0, "l0": 8.0}
GRID_RADII = {"linf": 0.1, "l2": 0.12, "l1": 0.15, "l0": 1.0}
N_STARTS = 3  # one run may end on a lower hill; three seldom do
N_JOBS = 6


def solves_a_linear_model(attack: Attack, norm: str) -> None:
    """On an affine model: the closed-form optimum, or the distance to the hyperplane in the box."""
    if attack.card.is_minimal:
        _require_short(attack, norm)
        return
    share = sum(linear_share(attack, norm, seed) for seed in (20, 21)) / 2
    _require_share(share, LINEAR_SHARE[attack.card.access], "affine models")


def reaches_its_target(attack: Attack, norm: str) -> None:
    """With a target: the best way towards that class, whichever other class is nearer."""
    if attack.card.is_minimal:
        _require_targets_reached(attack, norm)
        return
    wanted = LINEAR_SHARE[attack.card.access]
    _require_share(target_share(attack, norm, 23), wanted, "an affine model with a target")


def matches_the_grid(attack: Attack, norm: str) -> None:
    """On ReLU networks of two inputs: what an exhaustive grid over the set finds."""
    if attack.max_queries <= SINGLE_STEP:
        return
    found, best = 0.0, 0.0
    for seed in (32, 33):
        share = grid_gains(attack, norm, seed)
        found, best = found + share[0], best + share[1]
    if attack.card.is_minimal:
        is_search = searches_on(attack, norm)
        most = DETOUR[attack.card.access] if is_search else ESTIMATE_DETOUR
        _require_detour(found / best, most, "networks of two inputs")
        return
    wanted = GRID_SHARE[attack.card.access] if norm != "l0" else COUNTING_SHARE
    _require_share(found / best, wanted, "networks of two inputs")


def searches_on(attack: Attack, norm: str) -> bool:
    """Whether any job looks for a smaller change after its first success."""
    model, x = Affine(8, 3, seed=24), inputs(25, N_JOBS)
    problem = pose(model, x, _answers(model, x), Ball(norm, WHOLE[norm]))
    trace = drive(attack, model, problem)
    n_wins = torch.bincount(trace.jobs[trace.margins > 0], minlength=N_JOBS)
    return bool((n_wins > 1).any())


def improves_on_its_start(attack: Attack, norm: str) -> None:
    """No job ends below the clean input, and the search as a whole rises."""
    if attack.card.is_minimal:
        return  # its points leave the ball on purpose; the other contracts are about distances
    model, x = Net(8, 3, seed=40), inputs(41, N_JOBS)
    problem = pose(model, x, _answers(model, x), Ball(norm, RADII[norm]))
    trace = drive(attack, model, problem)
    gain = _gain(trace, norm)
    require(bool((gain >= 0).all()), f"A job ends {-gain.min():.3g} below its clean input.")
    first, last = trace.steps[0].margins.mean(), trace.steps[-1].margins.mean()
    rose = float(last - first)
    require(rose > 0, f"The mean margin changes by {rose:.3g} from the first to the last step.")


def linear_share(attack: Attack, norm: str, seed: int) -> float:
    """The rise of the margin on an affine model of two classes, over the largest possible one."""
    model, x = Affine(8, 2, seed=seed), inputs(seed + 1, N_JOBS)
    y = _answers(model, x)
    gain = _gain(drive(attack, model, pose(model, x, y, Ball(norm, RADII[norm]))), norm)
    return float(gain.sum() / _largest_gains(_slopes(model, y, 1 - y), x, norm).sum())


def target_share(attack: Attack, norm: str, seed: int) -> float:
    """The rise of ``z_target - z_y`` towards the farther of two classes, over the largest one.

    The nearer class lies in the opposite direction.
    """
    x = inputs(seed + 1, N_JOBS)
    model = Seesaw(8, seed=seed)
    rise = model.rise(x).detach()
    target = torch.where(rise > 0, 2, 1)
    problem = pose(model, x, torch.zeros_like(target), Ball(norm, RADII[norm]), target=target)
    gain = _gain(drive(attack, model, problem), norm)
    slope = model.slope.detach().numpy()
    slopes = np.where((target == 1)[:, None].numpy(), slope, -slope)
    return float(gain.sum() / _largest_gains(slopes, x, norm).sum())


def grid_gains(attack: Attack, norm: str, seed: int) -> tuple[float, float]:
    """What an attack gains on one network of two inputs, and what the grid finds, in total.

    The rise of the attack's own loss (the margin where it has none); for attacks that look for the
    smallest change, its size.
    """
    model, x = Net(2, 3, seed=seed, gain=2.0), inputs(seed + 100, N_JOBS, (2,))
    y = _answers(model, x)
    if attack.card.is_minimal:
        return _grid_radii(attack, model, x, y, norm)
    eps, n_starts = GRID_RADII[norm], N_STARTS if attack.card.is_stochastic else 1
    start = torch.arange(len(x)).repeat(n_starts)  # the same input again: another random start
    problem = pose(model, x[start], y[start], Ball(norm, eps))
    value = _own_loss(attack, model, problem)
    found = value(x, torch.arange(len(x)))
    best, clean = found.copy(), float(found.sum())
    trace = drive(attack, model, problem)
    is_inside = excess(trace.points, problem.x[trace.jobs], norm, eps) <= 0
    asked = np.where(is_inside, value(trace.points, trace.jobs), -np.inf)
    np.maximum.at(found, start[trace.jobs].numpy(), asked)
    for i in range(len(x)):
        everywhere = torch.from_numpy(grid(flat(x)[i], norm, eps)).float()
        best[i] = value(everywhere, torch.full((len(everywhere),), i)).max()
    return float(found.sum()) - clean, float(best.sum()) - clean


# ------------------------------------------------------------------ what they share


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _margins(model: nn.Module, x: Tensor, y: Tensor) -> Array:
    """``max_{i != y} z_i - z_y`` in float64, written apart from the losses of attacks."""
    with torch.no_grad():
        z = model(x).double().numpy()
    label = y.numpy()[:, None]
    own = np.take_along_axis(z, label, 1)[:, 0]
    np.put_along_axis(z, label, -np.inf, 1)
    return z.max(1) - own


def _own_loss(
    attack: Attack, model: nn.Module, problem: Problem
) -> Callable[[Tensor, Tensor], Array]:
    """The value that each job maximises, at points ``(q, *shape)`` of jobs ``(q,)``."""
    objective = attack.ask(attack.init(problem)).objective

    def value(points: Tensor, jobs: Tensor) -> Array:
        if objective is None or objective.width:
            return _margins(model, points, problem.y[jobs])
        with torch.no_grad():
            logits = model(points)
        losses = objective.function(logits, *[row[jobs] for row in objective.rows])
        return losses.double().numpy()

    return value


def _gain(trace: Trace, norm: str, eps: float | None = None) -> Array:
    """How far the best allowed point of each job lifts the margin above the clean input's."""
    problem = trace.problem
    eps = RADII[norm] if eps is None else eps
    beyond = excess(trace.points, problem.x[trace.jobs], norm, eps)
    best = trace.best_margins(torch.from_numpy(beyond <= 0))
    return (best - _clean(problem).double()).numpy()


def _clean(problem: Problem) -> Tensor:
    z, y, target = problem.logits, problem.y[:, None], problem.target[:, None]
    other = z.scatter(1, y, -torch.inf).amax(1)
    aim = z.gather(1, target.clamp_min(0))[:, 0]
    return torch.where(problem.target >= 0, aim, other) - z.gather(1, y)[:, 0]


def _slopes(model: Affine, y: Tensor, other: Tensor) -> Array:
    """The gradient of ``z_other - z_y`` ``(n, m)``."""
    weight = model.weight.detach().numpy().T
    return weight[other.numpy()] - weight[y.numpy()]


def _largest_gains(slopes: Array, x: Tensor, norm: str) -> Array:
    clean = flat(x)
    return np.array([largest_gain(slopes[i], clean[i], norm, RADII[norm]) for i in range(len(x))])


def _require_share(share: float, wanted: float, where: str) -> None:
    require(
        bool(share >= wanted),
        f"On {where} it reaches {share:.4f} of the best possible rise; {wanted} is asked for.",
    )


# ------------------------------------------------------------------ the smallest change


def _found_radii(trace: Trace, norm: str, n: int) -> Array:
    """The smallest change of each job that fools; infinite where none does."""
    d = flat(trace.points) - flat(trace.problem.x[trace.jobs])
    size = np.where(trace.margins.numpy() > 0, length(d, norm), np.inf)
    found = np.full(n, np.inf)
    np.minimum.at(found, trace.jobs.numpy(), size)
    return found


def _require_short(attack: Attack, norm: str) -> None:
    model, x = Affine(8, 2, seed=20), inputs(21, N_JOBS)
    y, clean = _answers(model, x), flat(x)
    slopes, needed = _slopes(model, y, 1 - y), -_margins(model, x, y)
    best = [smallest_radius(slopes[i], clean[i], norm, needed[i]) for i in range(len(x))]
    problem = pose(model, x, y, Ball(norm, WHOLE[norm]))
    found = _found_radii(drive(attack, model, problem), norm, len(x))
    ratio = float(found.sum() / np.sum(best))
    _require_detour(ratio, DETOUR[attack.card.access], "an affine model")


def _require_detour(ratio: float, allowed: float, where: str) -> None:
    require(
        ratio <= allowed,
        f"On {where} its changes are {ratio:.3f} times the smallest; {allowed} is allowed.",
    )


def _require_targets_reached(attack: Attack, norm: str) -> None:
    x, model = inputs(24, N_JOBS), Seesaw(8, seed=23)
    target = torch.where(model.rise(x).detach() > 0, 2, 1)
    problem = pose(model, x, torch.zeros_like(target), Ball(norm, WHOLE[norm]), target=target)
    trace = drive(attack, model, problem)
    with torch.no_grad():
        is_there = model(trace.points).argmax(1) == target[trace.jobs]
    reached = np.zeros(len(x), dtype=bool)
    np.logical_or.at(reached, trace.jobs.numpy(), is_there.numpy())
    require(
        2 * reached.sum() >= len(x),
        f"{int(reached.sum())} of {len(x)} jobs reach their target, the farther class.",
    )


def _grid_radii(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, norm: str
) -> tuple[float, float]:
    axis = np.linspace(0.0, 1.0, 401)
    everywhere = np.stack([a.ravel() for a in np.meshgrid(axis, axis)], 1)
    with torch.no_grad():
        answers = model(torch.from_numpy(everywhere)).argmax(1).numpy()
    problem = pose(model, x, y, Ball(norm, WHOLE[norm]))
    found = _found_radii(drive(attack, model, problem), norm, len(x))
    sizes = [length(everywhere[answers != int(y[i])] - flat(x)[i], norm) for i in range(len(x))]
    best = np.array([size.min(initial=np.inf) for size in sizes])
    possible = np.isfinite(best)
    reached = possible & np.isfinite(found)  # descent may end in a valley without a way out
    require(
        reached.sum() >= 0.75 * possible.sum(),
        f"It finds no change for {int((possible & ~reached).sum())} of {int(possible.sum())} "
        "inputs that can be changed.",
    )
    return float(found[reached].sum()), float(best[reached].sum())
