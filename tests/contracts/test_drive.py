"""The reference loop is what the engine equals, and the truth it is measured by is true."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from defects import SignFlipped
from scipy.optimize import minimize

from holdfast import APGD, FGSM, PGD, Square, contracts
from holdfast.contracts import _geometry as geometry
from holdfast.contracts._toys import RADII, Net, inputs
from holdfast.data import ArrayData
from holdfast.engine.random import Rng
from holdfast.engine.scan import scan
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=8), APGD(steps=8), Square(queries=30)])
def test_the_engine_returns_the_best_point_of_the_reference_loop(attack, norm):
    model, x = Net(8, 3), inputs(1, 6)
    y = model(x).argmax(1)
    problem = contracts.pose(model, x, y, Ball(norm, RADII[norm]))
    keys = Rng(scan(ArrayData(x, y), Domain()).keys).fold(7)
    trace = contracts.drive(attack, model, replace(problem, rng=keys.fold(problem.target).fold(0)))
    found = attack(model, x, y, f"{norm}:{RADII[norm]}", seed=7, stop="budget", batch_size=4)
    for job in range(len(x)):
        margins = trace.margins[trace.jobs == job]
        assert torch.equal(found[job], trace.path(job)[margins.argmax()])


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_gain_in_l2_is_that_of_a_general_solver(seed):
    x, g = inputs(seed, 1)[0].double().numpy(), inputs(seed + 50, 1)[0].double().numpy() - 0.4
    solved = minimize(
        lambda d: -g @ d,
        np.zeros(8),
        jac=lambda d: -g,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "ineq", "fun": lambda d: 0.09 - d @ d, "jac": lambda d: -2 * d},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert geometry.largest_gain(g, x, "l2", 0.3) == pytest.approx(-solved.fun, rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_no_allowed_point_gains_more_than_the_largest_gain(norm):
    x, eps = inputs(3, 1), RADII[norm]
    g = inputs(4, 1)[0].double().numpy() - 0.5
    many = Ball(norm, eps).bind(x.expand(4000, -1), Domain()).sample(Rng.from_seed(0, 4000))
    assert (geometry.excess(many, x.expand(4000, -1), norm, eps) <= 0).all()
    gains = (many - x).double().numpy() @ g
    assert gains.max() <= geometry.largest_gain(g, x[0].double().numpy(), norm, eps) + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_smallest_radius_undoes_the_largest_gain(norm):
    x, g = inputs(5, 1)[0].double().numpy(), inputs(6, 1)[0].double().numpy() - 0.5
    gain = geometry.largest_gain(g, x, norm, RADII[norm])
    assert geometry.smallest_radius(g, x, norm, gain) == pytest.approx(RADII[norm], rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_grid_lies_in_the_set_and_covers_it(norm):
    x = inputs(7, 1, (2,))
    points = torch.from_numpy(geometry.grid(x[0].double().numpy(), norm, 0.3))
    repeated = x.double().expand(len(points), -1)
    assert (geometry.excess(points, repeated, norm, 0.3 + 1e-9) <= 0).all()
    many = Ball(norm, 0.3).bind(x.expand(500, -1), Domain()).sample(Rng.from_seed(0, 500))
    assert torch.cdist(many.double(), points).min(1).values.max() < 0.01


def test_points_just_outside_are_seen():
    x = inputs(8, 1)
    for norm in ("linf", "l2", "l1"):
        step = torch.zeros_like(x)
        step[0, x[0].argmin()] = RADII[norm] * (1 + 1e-4)
        assert geometry.excess(x + step, x, norm, RADII[norm])[0] > 0
    assert geometry.excess(x - 2, x, "l0", 8)[0] > 0
    assert geometry.excess(x * torch.nan, x, "linf", 9.0)[0] > 0


def test_check_lists_every_contract_that_is_not_kept():
    with pytest.raises(contracts.ContractViolation, match="linf-solves_a_linear_model"):
        contracts.check(SignFlipped(steps=4))
