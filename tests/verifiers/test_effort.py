"""How effort is divided between branching and neurons' bounds, and what the latter give a tree."""

import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.domains import Anchor, Domain
from holdfast.verifiers.effort import favour, gain, share_bounds
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.tightening import cost


def test_gain_is_what_was_made_good_of_the_worst_bound():
    assert gain({0: -4.0, 1: -1.0}, {0: -1.0, 1: -1.0}) == pytest.approx(0.75)
    assert gain({0: -4.0, 1: -1.0}, {1: -0.5}) == pytest.approx(0.875)
    assert gain({0: -4.0}, {}) == 1.0
    assert gain({}, {0: -1.0}) == 0.0


@pytest.mark.parametrize(
    ("branching", "refining", "times"),
    [(0.2, 0.2, 1.0), (0.1, 0.2, 0.5), (0.01, 0.9, 0.25), (0.4, 0.001, 16.0), (0.4, 0.0, 16.0)],
)
def test_what_gained_more_gets_more(branching, refining, times):
    assert favour(branching, refining) == pytest.approx(times)


def test_nothing_gained_changes_nothing():
    assert favour(0.0, 0.5) == 1.0


def test_bounds_of_the_whole_box_are_shared_with_its_parts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.rand(1, 3)
    graph = capture(net, x, fold=False).to(torch.float64)
    whole = BoxRegion(x.double() - 0.5, x.double() + 0.5)
    part = BoxRegion(x.double() - 0.5, x.double() + torch.tensor([0.5, 0.1, 0.5]))
    rough, sharp = propagate(graph, part, "interval"), propagate(graph, whole, "crown")
    anchor, other = Anchor(rough, 3.0), Anchor(sharp, 3.0)
    domains = [Domain(0, (), a) for a in (anchor, anchor, other)]
    share_bounds(graph, domains, sharp)
    first, second, third = (d.anchor for d in domains)
    assert first is second
    assert first is not third
    values = [whole.lower + torch.rand(4000, 3).double() * (part.upper - whole.lower)]
    for node in graph.nodes[1:]:
        values.append(node.op.run(*(values[i] for i in node.inputs)))
    for box, a, b, seen in zip(first.state.boxes, rough.boxes, sharp.boxes, values, strict=True):
        assert bool((box.lower >= torch.maximum(a.lower, b.lower) - 1e-9).all())
        assert bool((box.upper <= torch.minimum(a.upper, b.upper) + 1e-9).all())
        assert bool((box.lower <= seen.amin(0)).all())
        assert bool((box.upper >= seen.amax(0)).all())


def test_new_bounds_cost_what_they_pass_through():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    for layer in net[::2]:
        nn.init.zeros_(layer.bias)
    graph = capture(net, torch.zeros(1, 3), fold=False).to(torch.float64)
    region = BoxRegion(-torch.ones(1, 3).double(), torch.ones(1, 3).double())
    state = propagate(graph, region, "interval")
    loose = [int((state.boxes[i].lower < 0).sum()) for i in (1, 3)]
    assert loose == [8, 5]  # a box around zero: every neuron may be of either sign
    before = [sum(n.size for n in graph.nodes[: i + 1] if n.index % 2 == 0) for i in (1, 3)]
    weights = [8 * 3, 8 * 3 + 5 * 8]
    rows = zip(loose, before, weights, strict=True)
    assert cost(graph, state) == sum(2 * n * (own + through) for n, own, through in rows)


def test_a_net_whose_neurons_are_all_decided_costs_nothing():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(net[0].bias, 100.0)
    graph = capture(net, torch.zeros(1, 3), fold=False).to(torch.float64)
    region = BoxRegion(-torch.ones(1, 3).double(), torch.ones(1, 3).double())
    assert cost(graph, propagate(graph, region, "interval")) == 0
