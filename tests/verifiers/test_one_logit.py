"""Networks with a single logit, with an axis for it and without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import holdfast
from holdfast.verifiers.certify import certify

NORMS = ["linf", "l2", "l1", "l0"]


class OneLogit(nn.Module):
    """Class 1 where a small network's value is positive; half of ``points`` are."""

    def __init__(self, points, has_axis, reduces=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.has_axis, self.reduces, self.offset = has_axis, reduces, 0.0
        with torch.no_grad():
            self.offset = self(points).flatten().median().item() + 1e-3

    def forward(self, x):
        z = self.net(x)
        if self.reduces:  # a value without an axis in the middle of the network
            z = z * torch.relu(z.mean(1) + 0.2).unsqueeze(1)
        z = z.sum(1) - self.offset
        return z.unsqueeze(1) if self.has_axis else z


@pytest.fixture
def points():
    return torch.rand(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["with an axis", "without an axis", "reduces inside"])
def net(request, points):
    return OneLogit(points, request.param == "with an axis", request.param == "reduces inside")


def classes(net, x):
    with torch.no_grad():
        return (net(x).flatten() > 0).long()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown"])
def test_bounds_contain_the_logit(net, points, method):
    found = holdfast.bounds(net, points, "linf:0.05", method=method)
    noise = torch.empty(200, *points.shape).uniform_(-0.05, 0.05)
    with torch.no_grad():
        z = torch.stack([net((points + d).clamp(0, 1)).flatten() for d in noise]).double()
    assert (found.lower[:, 0] <= z.amin(0)).all()
    assert (found.upper[:, 0] >= z.amax(0)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_both_classes_get_a_radius_that_holds(net, points, norm):
    y = classes(net, points)
    assert 0 < y.sum() < len(y)
    radius = holdfast.certified_radius(net, points, y, norm=norm)
    assert (holdfast.certified_radius(net, points, 1 - y, norm=norm) == 0).all()
    if norm == "l0":
        return
    assert (radius > 0).any()
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    for _ in range(100):
        d = torch.randn_like(points)
        d = d / torch.linalg.vector_norm(d, order, 1, keepdim=True) * radius.unsqueeze(1).float()
        assert (classes(net, (points + 0.999 * d).clamp(0, 1)) == y).all()


def test_certificates_and_counterexamples(net, points):
    y = classes(net, points)
    small = certify(net, points, y, 1e-4, effort="fast")
    assert all(c.status == "unsat" for c in small)
    large = certify(net, points, y, 1.0, effort="thorough", timeout_s=10)
    assert any(c.status == "sat" for c in large)
    for c, expected in zip(large, y, strict=True):
        if c.status == "sat":
            assert c.x_adv is not None
            assert classes(net, c.x_adv[None]) != expected


def test_an_audit_proves_them(net, points):
    y = classes(net, points)
    report = holdfast.audit(net, (points, y), "linf:0.0001", verify="fast", trust="off")
    assert report.verified_accuracy is not None
    assert report.verified_accuracy.k == len(y)


def test_a_class_that_is_not_there_is_told(net, points):
    with pytest.raises(ValueError, match="class 2; allowed: 0 to 1, as the network has 1 output"):
        certify(net, points, torch.full((8,), 2), 0.1)
