"""The dense form of rectifier networks against passes through the graph."""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.crown import Cuts, pull_back
from holdfast.verifiers.dense import DenseLines, ascend, backward, condense, forward
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion


class Residual(nn.Module):
    """Two branches that meet, one of them without a rectifier."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3 * 16, 4)

    def forward(self, x):
        inner = self.first(x)
        return self.last((self.second(inner.relu()).relu() + inner).relu().flatten(1))


def setting(n=5):
    """Graph, state, dense form of four rows, bounds of undecided neurons for ``n`` domains."""
    torch.manual_seed(0)
    graph = capture(Residual().eval(), torch.zeros(1, 2, 4, 4), fold=False)
    x = torch.rand(1, 2, 4, 4)
    region = BoxRegion(x - 0.3, x + 0.3)
    state = propagate(graph, region, rounding=False)
    C, d = torch.eye(4), torch.randn(4)
    net = condense(graph, state, C, None, d, (region.lower.flatten(), region.upper.flatten()))
    assert net is not None
    lower, upper = (
        torch.cat([state.boxes[k.source][side].flatten()[k.neurons] for k in net.layers])
        for side in (0, 1)
    )
    return graph, region, state, net, d, lower.expand(n, -1), upper.expand(n, -1)


def splits(u, n=5):
    sign = torch.zeros(n, u)
    for i in range(n):
        sign[i, torch.randperm(u)[:i]] = 1.0
        sign[i, torch.randperm(u)[: 2 * i]] = -1.0
    return sign


def by_graph(graph, region, state, net, d, row, alpha, beta, sign):
    """The same bound by a pass through the graph."""
    parameters, cuts, multipliers, boxes = {}, {}, {}, list(state.boxes)
    for layer, (i, j) in zip(net.layers, net.spans(), strict=True):
        node = graph.nodes[layer.node]
        full = torch.zeros(node.size).scatter(0, layer.neurons, alpha[i:j])
        parameters[layer.node] = full.reshape(1, 1, 1, *node.shape)
        cuts[layer.source] = Cuts(layer.neurons[None], sign[None, i:j], torch.zeros(1, j - i))
        multipliers[layer.source] = beta[None, i:j]
        box, shape = boxes[layer.source], boxes[layer.source].lower.shape
        low, high = box.lower.flatten().clone(), box.upper.flatten().clone()
        up, down = layer.neurons[sign[i:j] > 0], layer.neurons[sign[i:j] < 0]
        low[up], high[down] = low[up].clamp(min=0), high[down].clamp(max=0)
        boxes[layer.source] = type(box)(low.reshape(shape), high.reshape(shape))
    cut = type(state)(boxes, [])
    A = torch.eye(4)[row].reshape(1, 1, 4)
    bound = pull_back(
        graph,
        len(graph.nodes) - 1,
        A,
        cut,
        parameters=parameters,
        cuts=cuts,
        multipliers=multipliers,
        rounding=False,
    )
    return float(region.minimum(bound.A) + bound.constant + d[row])


@pytest.fixture(scope="module", name="case")
def _case():
    graph, region, state, net, d, lower, upper = setting()
    u = lower.shape[1]
    assert u > 20
    sign = splits(u)
    alpha, beta = torch.rand(5, u), torch.rand(5, u) * (sign != 0)
    return graph, region, state, net, d, DenseLines.of(lower, upper, sign), alpha, beta


def test_same_bounds_as_through_the_graph(case):
    graph, region, state, net, d, lines, alpha, beta = case
    rows = torch.arange(5) % 4
    value, _ = backward(net, rows, lines, alpha, beta)
    for i, row in enumerate(rows.tolist()):
        known = by_graph(graph, region, state, net, d, row, alpha[i], beta[i], lines.sign[i])
        assert float(value[i]) == pytest.approx(known, rel=1e-4, abs=1e-4)


def test_the_corner_gives_the_derivative(case):
    *_, net, _, lines, alpha, beta = case
    rows = torch.arange(5) % 4
    value, A = backward(net, rows, lines, alpha, beta)
    z = forward(net, A, lines, alpha)
    step = 1e-2
    for name, wanted in (
        ("alpha", A[:, net.n_inputs :].relu() * z * lines.loose),
        ("beta", -lines.sign * z),
    ):
        for j in range(0, z.shape[1], 7):
            a, b = alpha.clone(), beta.clone()
            (a if name == "alpha" else b)[:, j] += step
            moved, _ = backward(net, rows, lines, a, b)
            # The bound is concave: the supergradient lies above every difference.
            assert bool((moved - value <= step * wanted[:, j] + 1e-4).all())


def test_ascent_never_loses(case):
    *_, net, _, lines, alpha, beta = case
    rows = torch.arange(5) % 4
    first, _ = backward(net, rows, lines, alpha, beta)
    new_alpha, new_beta, value = ascend(net, rows, lines, alpha, beta, 20, target=torch.inf)
    assert bool((value >= first).all())
    assert float((value - first).min()) > 0.01
    again, _ = backward(net, rows, lines, new_alpha, new_beta)
    torch.testing.assert_close(again, value, atol=1e-4, rtol=1e-4)
    assert float(new_alpha.min()) >= 0
    assert float(new_alpha.max()) <= 1
    assert float(new_beta.min()) >= 0


def test_other_activations_have_no_dense_form():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).eval()
    graph = capture(net, torch.zeros(1, 2), fold=False)
    box = -torch.ones(2), torch.ones(2)
    state = propagate(graph, BoxRegion(box[0][None], box[1][None]), rounding=False)
    assert condense(graph, state, torch.ones(1, 1), None, torch.zeros(1), box) is None
