"""RayS: what it finds with labels alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks.rays import RayS
from holdfast.errors import PlanError


def affine(m=16, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        f = nn.Linear(m, 2)
        f.bias.data.zero_()
    return f


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_finds_the_boundary_of_an_affine_model_with_labels_alone(norm):
    f = affine()
    x = torch.rand(20, 16, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    y = f(x).argmax(1)
    w = (f.weight[1] - f.weight[0]).detach()
    gap = (x @ w + f.bias[1] - f.bias[0]).abs().detach()
    # along sign vectors, r = gap / mean dual weight is the least there is; in linf it is exact
    least = {"linf": w.abs().sum(), "l2": w.abs().sum() / 4, "l1": w.abs().sum() / 16}[norm]
    eps = gap / least * 1.25
    labels = holdfast.Model(lambda z: f(z).argmax(1), n_classes=2)
    x_adv = RayS(queries=600)(labels, x, y, holdfast.Ball(norm, eps))
    assert float((f(x_adv).argmax(1) != y).float().mean()) >= 0.9
    nothing = RayS(queries=600)(labels, x, y, holdfast.Ball(norm, eps * 0.75))
    assert bool((f(nothing).argmax(1) == y).all())


def test_goes_beyond_all_signs_alike():
    f = affine(seed=3)
    x = torch.full((4, 16), 0.5) + 0.01 * torch.arange(4)[:, None]
    y = f(x).argmax(1)
    first = RayS(queries=12)(f, x, y, "linf:0.4", stop="budget")
    later = RayS(queries=400)(f, x, y, "linf:0.4", stop="budget")
    distance = [(z - x).abs().amax(1)[f(z).argmax(1) != y] for z in (first, later)]
    assert len(distance[1]) == 4
    assert len(distance[0]) < 4 or float(distance[1].mean()) < float(distance[0].mean())


def test_refuses_no_queries():
    with pytest.raises(PlanError, match="queries is 0"):
        RayS(queries=0)
