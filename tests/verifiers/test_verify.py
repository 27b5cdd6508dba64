"""Verdicts against truth from exhaustive grids."""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import tree
from holdfast.verifiers import verify as module
from holdfast.verifiers.crown import LinearBound
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.verify import verify


def network(seed, inputs=2, width=10):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )
    return net.eval()


def at_most(threshold, inputs=2):
    """Violated where the difference of the outputs is at most the threshold, within [-1, 1]."""
    return Property(
        (
            Clause(
                -np.ones(inputs), np.ones(inputs), np.array([[1.0, -1.0]]), np.array([-threshold])
            ),
        )
    )


def grid_minimum(net):
    axis = torch.linspace(-1, 1, 401)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        y = net(points)
    return float((y[:, 0] - y[:, 1]).min())


@pytest.fixture(params=["inputs", "activations"])
def splitting(request, monkeypatch):
    monkeypatch.setattr(module, "FEW_INPUTS", 12 if request.param == "inputs" else 0)
    return request.param


@pytest.mark.parametrize("seed", range(4))
def test_both_sides_of_the_true_minimum(seed, splitting):
    net = network(seed)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    least = grid_minimum(net)
    # The grid is 0.0025 from any point; the slope of these networks is below 4.
    below = verify(graph, at_most(least - 0.02), timeout_s=60)
    above = verify(graph, at_most(least + 0.001), timeout_s=60)
    assert (below.status, above.status) == ("unsat", "sat")
    witness = above.counterexample
    assert witness is not None
    assert bool((np.abs(witness.x) <= 1).all())
    y = net(torch.from_numpy(witness.x)[None])[0].detach()
    assert float(y[0] - y[1]) <= least + 0.001


@pytest.mark.parametrize("seed", range(4))
def test_without_the_attack_nothing_false_is_proven(seed, splitting):
    net = network(seed)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    least = grid_minimum(net)
    verdict = verify(graph, at_most(least), timeout_s=1.5, attack=False)
    assert verdict.status in ("timeout", "unknown")


class Magnitudes(nn.Module):
    """``(|x_0| + |x_1|, 0)``, by rectifiers: the least difference is exactly zero."""

    def forward(self, x):
        total = (x.relu() + (-x).relu()).sum(1, keepdim=True)
        return torch.cat([total, torch.zeros_like(total)], 1)


@pytest.mark.parametrize(("threshold", "wanted"), [(1e-9, False), (-1e-9, True)])
def test_a_hair_is_not_a_proof(threshold, wanted, splitting):
    graph = capture(Magnitudes(), torch.zeros(1, 2), fold=False)
    verdict = verify(graph, at_most(threshold), timeout_s=2.0, attack=False)
    assert (verdict.status == "unsat") == wanted


def test_only_a_positive_bound_closes_a_domain(monkeypatch):
    values = torch.tensor([1e-12, 0.0, -1e-12], dtype=torch.float64)[:, None]
    none = torch.zeros(3, 1, 2, dtype=torch.float64)
    region = BoxRegion(none[:, 0], none[:, 0])
    batch = SimpleNamespace(region=region, D=None, d=values)
    bound = LinearBound(none, torch.zeros_like(values), {})
    monkeypatch.setattr(tree, "exact", lambda *_: (batch, bound))
    search = SimpleNamespace(keep_leaves=False)
    domains = ["above", "at", "below"]
    assert tree.prove(SimpleNamespace(search=search), domains) == ["above"]


def test_conjunctions_and_disjunctions(splitting):
    net = network(7)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    least = grid_minimum(net)
    C, low, high = np.array([[1.0, -1.0]]), -np.ones(2), np.ones(2)
    never = Clause(low, high, C, np.array([-(least - 0.02)]))
    possible = Clause(low, high, C, np.array([-(least + 0.1)]))
    impossible_with = Clause(low, high, np.r_[C, -C], np.array([-(least + 0.1), least + 0.2]))
    assert verify(graph, Property((never, possible)), timeout_s=60).status == "sat"
    assert verify(graph, Property((never, impossible_with)), timeout_s=60).status == "unsat"


def test_rows_may_read_inputs(splitting):
    net = network(3)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    # x_0 <= -2 never holds in the box; x_0 <= -0.99 does.
    zero = np.zeros((1, 2))

    def prop(limit):
        return Property(
            (Clause(-np.ones(2), np.ones(2), zero, np.array([-limit]), np.array([[1.0, 0.0]])),)
        )

    assert verify(graph, prop(-2.0)).status == "unsat"
    assert verify(graph, prop(-0.99)).status == "sat"


def test_leaves_cover_the_box_and_hold():
    net = network(1)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    least = grid_minimum(net)
    verdict = verify(graph, at_most(least - 0.02), certificate=True, timeout_s=60)
    proof = verdict.certificate
    assert proof is not None
    assert proof.input_splits
    area = sum(float(np.prod(leaf.upper - leaf.lower)) for leaf in proof.leaves)
    assert area == pytest.approx(4.0)
    for leaf in proof.leaves:
        points = torch.from_numpy(
            leaf.lower + np.random.default_rng(0).random((50, 2)) * (leaf.upper - leaf.lower)
        )
        y = net(points.float()).detach().double()
        assert float((y[:, 0] - y[:, 1]).min()) - (least - 0.02) >= leaf.value - 1e-5


def test_activation_leaves_form_a_tree(monkeypatch):
    monkeypatch.setattr(module, "FEW_INPUTS", 0)
    net = network(1)
    graph = capture(net, torch.zeros(1, 2), fold=False)
    verdict = verify(graph, at_most(grid_minimum(net) - 0.02), certificate=True, timeout_s=60)
    proof = verdict.certificate
    assert proof is not None
    assert len(proof.leaves) > 1
    # Leaves of a complete binary tree: 2^-depth sums to one.
    assert sum(2.0 ** -len(leaf.splits) for leaf in proof.leaves) == 1
    assert set(proof.bounds) >= {s.node for leaf in proof.leaves for s in leaf.splits}
    assert all(len(leaf.multipliers) == len(leaf.splits) for leaf in proof.leaves)


def test_contradictions_and_bad_sizes():
    graph = capture(network(0), torch.zeros(1, 2), fold=False)
    empty = Clause(np.ones(2), -np.ones(2), np.array([[1.0, -1.0]]), np.zeros(1))
    assert verify(graph, Property(())).status == "unsat"
    verdict = verify(graph, Property((empty,)))
    assert (verdict.status, verdict.reason) == ("unsat", "the property contradicts itself")
    with pytest.raises(ValueError, match="the property has 3 inputs and 2 outputs"):
        verify(graph, at_most(0.0, inputs=3))
    with pytest.raises(ValueError, match="has no rows"):
        verify(graph, Property((Clause(-np.ones(2), np.ones(2), np.ones((0, 2)), np.ones(0)),)))
    with pytest.raises(ValueError, match="needs example="):
        verify(network(0), at_most(0.0))


def test_no_time_is_a_timeout():
    graph = capture(network(0), torch.zeros(1, 2), fold=False)
    assert verify(graph, at_most(-0.5), timeout_s=0.0, attack=False).status == "timeout"


def test_smooth_activations_are_split_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    graph = capture(net, torch.zeros(1, 2), fold=False)
    least = grid_minimum(net)
    assert verify(graph, at_most(least - 0.02), timeout_s=60).status == "unsat"
    module_few = module.FEW_INPUTS
    try:
        module.FEW_INPUTS = 0
        assert verify(graph, at_most(least - 0.05), timeout_s=60).status == "unsat"
    finally:
        module.FEW_INPUTS = module_few
