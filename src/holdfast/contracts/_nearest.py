"""The contract of minimal attacks: on an affine model the smallest change is known exactly.

With a box that is far away, and with one that holds the best coordinates; with inputs of very
different distances side by side, so that a batch that shares anything is seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.base import Attack
from holdfast.contracts._drive import drive, pose
from holdfast.contracts._geometry import Array, flat, largest_gain, length
from holdfast.contracts._toys import Affine, inputs
from holdfast.contracts._violation import require
from holdfast.perturbations.ball import Ball
from holdfast.threat import Access, Domain

N_JOBS = 6
RATIO = 1.05  # of the shortest way, after the default steps
FEW = 1.0  # coordinates that a count may be above it, on average
MOST = 2000  # questions per job; an attack that needs more has a test of its own
# where, the scale of the inputs, and the box in units of it
WORLDS = {
    "a box far away and inputs up to 100": (100.0, (-0.5, 1.5)),
    "a box that holds": (1.0, (0.0, 1.0)),
}


def finds_the_hyperplane(attack: Attack, norm: str) -> None:
    """On affine models: at most 1.05 times the closed-form distance, box active and inactive."""
    is_searcher = attack.card.is_minimal and attack.card.access is Access.GRADIENTS
    if not is_searcher or attack.max_queries > MOST:
        return
    for where, (scale, box) in WORLDS.items():
        found, best = _distances(attack, norm, scale, box)
        if norm == "l0":
            over = float((found - best).mean())
            require(over <= FEW, f"With {where} it changes {over:.2f} coordinates too many.")
            continue
        ratio = float((found / best).mean())
        require(
            ratio <= RATIO,
            f"With {where} its changes are {ratio:.3f} times the smallest, up to "
            f"{(found / best).max():.3f}; {RATIO} is allowed.",
        )


def _distances(
    attack: Attack, norm: str, scale: float, box: tuple[float, float]
) -> tuple[Array, Array]:
    """What the attack finds and what is possible, job by job, in units of the scale."""
    model, x = Affine(8, 2, seed=70), inputs(71, N_JOBS)
    x[0] = _nearly_there(model, x[0])
    with torch.no_grad():
        z = model(x).double().numpy()
    y = z.argmax(1)
    weight = model.weight.detach().numpy().T
    domain, ball = Domain(scale * box[0], scale * box[1]), _everything(norm, scale, box)

    def scaled(z: Tensor) -> Tensor:
        return model(z / scale)

    trace = drive(attack, scaled, pose(scaled, scale * x, torch.from_numpy(y), ball, domain=domain))
    d = (flat(trace.points) - flat(scale * x[trace.jobs])) / scale
    size = np.where(trace.margins.numpy() > 0, length(d, norm), np.inf)
    found = np.full(N_JOBS, np.inf)
    np.minimum.at(found, trace.jobs.numpy(), size)
    best = [
        _exact(weight[1 - k] - weight[k], flat(x)[i], norm, z[i, k] - z[i, 1 - k], box)
        for i, k in enumerate(y.tolist())
    ]
    return found, np.array(best)


def _nearly_there(model: Affine, x: Tensor) -> Tensor:
    """An input whose distance is a small part of the others'."""
    with torch.no_grad():
        slope = (model.weight[:, 1] - model.weight[:, 0]).float()
        gap = (model(x[None])[0] @ torch.tensor([-1.0, 1.0])).float()
        z = x - 0.8 * gap * slope / slope.square().sum()
    return z.clamp(0.0, 1.0)


def _everything(norm: str, scale: float, box: tuple[float, float]) -> Ball:
    width = scale * (box[1] - box[0])
    sizes = {"linf": width, "l2": width * np.sqrt(8), "l1": width * 8, "l0": 8.0}
    return Ball(norm, float(sizes[norm]))


def _exact(slope: Array, x: Array, norm: str, needed: float, box: tuple[float, float]) -> float:
    """The smallest size whose largest gain is ``needed``, by bisection, in units of the box."""
    width = box[1] - box[0]
    inner, gain = (x - box[0]) / width, needed / width
    if norm == "l0":
        counts = range(x.size + 1)
        return float(next(k for k in counts if largest_gain(slope, inner, norm, k) >= gain))
    low, high = 0.0, float(x.size)
    for _ in range(80):
        middle = (low + high) / 2
        reached = largest_gain(slope, inner, norm, middle) >= gain
        low, high = (low, middle) if reached else (middle, high)
    return high * width
