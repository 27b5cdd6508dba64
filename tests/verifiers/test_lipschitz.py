# ruff: noqa: N806 - A, V and W are the matrices of the literature
import pytest
import torch
from torch import nn

from holdfast.errors import GraphError
from holdfast.graphs.torch_capture import capture
from holdfast.proving import certified_radius
from holdfast.verifiers.lipschitz import global_constants, lipschitz_radius, local_radius


class AOL(nn.Module):
    """An almost orthogonal layer: columns rescaled so that the map is 1-Lipschitz."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(n_out, n_in)),
            nn.Parameter(torch.zeros(n_out)),
        )

    def forward(self, z):
        scale = (self.weight.T @ self.weight).abs().sum(1).rsqrt()
        return nn.functional.linear(z, self.weight * scale, self.bias)


class SLL(nn.Module):
    """``z - 2 W T^-1 relu(W^T z + b)``; ``share`` above one breaks its condition."""

    def __init__(self, width, hidden, share=1.0):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(width, hidden)),
            nn.Parameter(torch.randn(hidden)),
        )
        self.share = share

    def forward(self, z):
        T = (self.weight.T @ self.weight).abs().sum(1) * 1.001 / self.share
        inner = torch.relu(nn.functional.linear(z, self.weight.T, self.bias))
        return z - nn.functional.linear(inner, 2 * self.weight / T)


def graph_of(module, *shape):
    return capture(module.eval(), torch.rand(1, *shape), fold=False).to(torch.float64)


def slope(graph, count=400):
    """The largest ratio of differences found between random neighbours."""
    x = torch.randn(count, *graph.input_shape, dtype=torch.float64)
    d = 1e-4 * torch.randn_like(x)
    change = (graph(x + d) - graph(x)).flatten(1).norm(dim=1)
    return float((change / d.flatten(1).norm(dim=1)).max())


NETWORKS = {
    "aol": (lambda: nn.Sequential(AOL(6, 8), nn.ReLU(), AOL(8, 4)), (6,)),
    "sll": (lambda: nn.Sequential(SLL(6, 9), SLL(6, 9), AOL(6, 4)), (6,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 4, 2, 2), nn.Flatten()
        ),
        (2, 6, 6),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 1, 2, 2, groups=2), nn.Tanh()), (4, 5, 5)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2, 1), nn.ReLU()), (2, 4, 4)),
    "pooled": (lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2), nn.GELU()), (2, 5, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_constants_bound_every_slope(name):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    graph = graph_of(build(), *shape)
    constant = global_constants(graph)[-1]
    assert slope(graph) <= constant
    if name in ("aol", "sll"):
        assert constant <= 1 + 1e-6
    assert constant < 20


def test_convolutions_are_bounded_close_to_their_matrix():
    torch.manual_seed(1)
    for conv in (nn.Conv2d(2, 3, 3, 1, 1, bias=False), nn.Conv2d(2, 3, 2, 2, bias=False)):
        graph = graph_of(conv, 2, 6, 6)
        eye = torch.eye(72, dtype=torch.float64).reshape(72, 2, 6, 6)
        exact = float(torch.linalg.matrix_norm(graph(eye).flatten(1), 2))
        assert exact <= global_constants(graph)[-1] <= 1.1 * exact


def test_a_layer_that_breaks_its_condition_is_no_contraction():
    torch.manual_seed(2)
    good, bad = (graph_of(SLL(4, 6, share), 4) for share in (1.0, 8.0))
    assert global_constants(good)[-1] <= 1 + 1e-6
    assert slope(bad) <= global_constants(bad)[-1]
    assert global_constants(bad)[-1] > 1.5


def radius_holds(net, x, y, radius, norm):
    d = torch.randn(500, *x.shape, dtype=x.dtype)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    d = d / torch.linalg.vector_norm(d, order, 2, keepdim=True)
    return bool((net(x + radius[:, None] * d).argmax(2) == y).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radii_hold_and_are_positive(norm):
    torch.manual_seed(3)
    net = nn.Sequential(AOL(6, 16), nn.ReLU(), SLL(16, 8), AOL(16, 4)).double().eval()
    x = torch.rand(8, 6, dtype=torch.float64)
    y = net(x).argmax(1)
    found = certified_radius(net, x, y, norm, method="lipschitz")
    local = local_radius(_double(net), x, y, norm, (-9, 9))
    for radius in (found, local):
        assert bool((radius > 0).all())
        assert radius_holds(net, x, y, radius, norm)
    assert not bool(certified_radius(net, x, (y + 1) % 4, norm, method="lipschitz").any())


def _double(net):
    return capture(net, torch.rand(1, 6, dtype=torch.float64), fold=False).to(torch.float64)


def test_local_bounds_are_exact_for_affine_maps():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)).double().eval()
    graph = capture(net, torch.rand(1, 5, dtype=torch.float64)).to(torch.float64)
    x = torch.rand(4, 5, dtype=torch.float64)
    out = net(x).detach()
    W = (net[1].weight @ net[0].weight).detach()
    exact = (out[:, 0] - out[:, 1]).abs() / (W[0] - W[1]).norm()
    found = local_radius(graph, x, out.argmax(1), "l2", (-9, 9), 2 * exact)
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)
    assert bool((found <= exact).all())


def test_what_has_no_constant_is_told():
    graph = graph_of(nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1)), 3)
    with pytest.raises(GraphError, match="method='crown'"):
        lipschitz_radius(graph, torch.rand(1, 3, dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(GraphError, match="l0"):
        lipschitz_radius(graph, torch.rand(1, 3, dtype=torch.float64), torch.tensor([0]), "l0")
