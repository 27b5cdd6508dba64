"""Maximum pooling: the right cells, sound planes, and windows that lose nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.graphs.operator import Box
from holdfast.graphs.operators.max_pool import MaxPool, planes
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import propagation
from holdfast.verifiers.bounds import bounds
from holdfast.verifiers.propagation import loose_for, propagate
from holdfast.verifiers.regions import threat_region

POOLS = {
    "apart": {"kernel_size": 2},
    "overlapping, padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "one step": {"kernel_size": 2, "stride": 1},
    "beyond the end": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "dilated": {"kernel_size": 2, "stride": 1, "dilation": 2},
    "not square": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)},
}


def network(pool):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(**POOLS[pool]),
            nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(3),
        ).eval()  # fmt: skip


@pytest.fixture
def x():
    return torch.rand(2, 2, 9, 8, generator=torch.Generator().manual_seed(4))


def graph_of(pool, x):
    net = network(pool)
    net(x)
    return net, capture(net, x[:1], fold=False).to(torch.float64)


@pytest.mark.parametrize("pool", POOLS)
def test_the_graph_computes_what_torch_computes(pool, x):
    net, graph = graph_of(pool, x)
    torch.testing.assert_close(graph(x.double()), net.double()(x.double()))
    assert any(isinstance(node.op, MaxPool) for node in graph.nodes)


@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_axes(rank):
    pool = (nn.MaxPool1d, nn.MaxPool3d)[rank // 2](3, 2, 1)
    x = torch.rand(2, 2, *[7, 5, 6][:rank])
    assert torch.equal(capture(pool, x[:1])(x), pool(x))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_windows_give_the_bounds_of_whole_maps(pool, eps, x, monkeypatch):
    _, graph = graph_of(pool, x)
    region = threat_region(x[:1].double(), eps, "linf")
    windows = propagate(graph, region)

    def whole(graph, node, readers, state, region, rounding=True):
        loose = loose_for(readers, state.boxes[node.index])
        return propagation._refined_together(graph, node, state, region, loose, rounding)

    monkeypatch.setattr(propagation, "refine", whole)
    pairs = list(zip(windows.boxes, propagate(graph, region).boxes, strict=True))
    for a, b in pairs[:7]:
        torch.testing.assert_close(a.lower, b.lower, atol=1e-11, rtol=0)
        torch.testing.assert_close(a.upper, b.upper, atol=1e-11, rtol=0)
    a, b = pairs[7]  # its rows end where the sign is proven, and may be better on the way
    open_ = (a.lower < 0) & (a.upper > 0)
    assert (a.lower >= b.lower - 1e-11)[open_].all()
    assert (a.upper <= b.upper + 1e-11)[open_].all()


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize("pool", POOLS)
def test_bounds_hold_at_samples_and_corners(pool, method, x):
    net, graph = graph_of(pool, x)
    found = bounds(graph, x, 0.1, "linf", method=method)
    noise = torch.empty(200, *x.shape).uniform_(-0.1, 0.1)
    noise[:100] = noise[:100].sign() * 0.1
    with torch.no_grad():
        z = net((x + noise).clamp(0, 1).flatten(0, 1)).reshape(200, 2, 3).double()
    assert (found.lower <= z.amin(0)).all()
    assert (found.upper >= z.amax(0)).all()


def test_planes_bound_the_maximum():
    cells = torch.tensor([[0, 1, 2], [2, 3, -1], [-1, 4, -1]])
    rng = torch.Generator().manual_seed(0)
    low = torch.randn(200, 2, 5, generator=rng, dtype=torch.float64)
    high = low + 2 * torch.rand(200, 2, 5, generator=rng, dtype=torch.float64)
    found = planes(low, high, cells)
    for share in torch.rand(300, *low.shape, generator=rng, dtype=torch.float64).round(decimals=0):
        z = low + share * (high - low)
        most = torch.stack([z[..., c[c >= 0]].amax(-1) for c in cells], -1)
        assert (z.gather(2, found.below) <= most + 1e-12).all()
        assert (found.slope * z.gather(2, found.above) + found.intercept >= most - 1e-12).all()


def test_a_cell_that_dominates_is_read_alone():
    pool = capture(nn.MaxPool2d(2), torch.rand(1, 1, 2, 2)).nodes[1].op
    box = Box(
        torch.tensor([[[[2.0, -1.0], [0.0, 1.0]]]]), torch.tensor([[[[3.0, 1.0], [1.0, 2.0]]]])
    )
    for sign in (1.0, -1.0):
        pulled = pool.pull(torch.full((1, 1, 1, 1, 1), sign), [box])
        expected = torch.tensor([[sign, 0.0], [0.0, 0.0]])
        assert torch.equal(pulled.coefficients[0][0, 0, 0], expected)
        assert float(pulled.constant) == 0
    assert not pool.is_loose(box).any()
    wider = Box(box.lower, box.upper + torch.tensor([[0.0, 1.5], [0.0, 0.0]]))
    assert pool.is_loose(wider).flatten().tolist() == [True, True, False, False]


def test_what_a_pool_reads_is_bounded_backward_where_no_rectifier_needs_it(x):
    """Active rectifiers are exact, but what comes after them may still gain."""
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2)
    )
    layers[2].bias.data += 50.0
    graph = capture(layers.eval(), x[:1], fold=False).to(torch.float64)
    region = threat_region(x.double(), 0.1, "linf")
    sharp, plain = (propagate(graph, region, m).boxes for m in ("crown", "interval"))
    assert (plain[3].lower > 0).all()
    assert ((sharp[4].upper - sharp[4].lower) < 0.9 * (plain[4].upper - plain[4].lower)).any()
    assert F.max_pool2d(layers[:4](x), 2).double().ge(sharp[5].lower).all()
