import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.certify import Certified
from holdfast.verifiers.deployed import float32_error
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion, threat_region


def test_float32_runs_within_the_error_charged():
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Tanh(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(64, 5)).eval()
    for part in net:
        if isinstance(part, nn.Conv2d):
            part.weight.data *= 20  # large sums, so that rounding shows
    x = torch.rand(3, 1, 10, 10)
    graph = capture(net, x, fold=False).to(torch.float64)
    region = threat_region(x.double(), 0.1, "linf")
    error = float32_error(graph, propagate(graph, region, "interval").boxes)
    points = (x + 0.1 * (2 * torch.rand(300, *x.shape) - 1)).clamp(0, 1)
    with torch.no_grad():
        exact = graph(points.double().flatten(0, 1)).reshape(300, 3, 5)
        run = net(points.flatten(0, 1)).double().reshape(300, 3, 5)
    seen = (run - exact).abs().amax(0)
    assert error is not None
    assert bool((seen <= error).all())
    assert bool((error < 1e-2).all())
    assert float(seen.max()) > 0


def test_margins_within_rounding_are_not_called_covered():
    found = Certified("unsat", 1e-9, rounding=1e-6)
    assert not found.covers_float32
    assert Certified("unsat", 1e-3, rounding=1e-6).covers_float32
    assert not Certified("unsat", 1e-3).covers_float32


def test_errors_before_a_pooling_reach_the_output():
    torch.manual_seed(6)
    first = nn.Conv2d(1, 4, 3, 1, 1)
    first.weight.data *= 1000
    net = nn.Sequential(first, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3)).eval()
    x = torch.rand(2, 1, 10, 10)
    graph = capture(net, x, fold=False).to(torch.float64)
    region = threat_region(x.double(), 0.1, "linf")
    error = float32_error(graph, propagate(graph, region, "interval").boxes)
    assert error is not None
    # The last layer over the same pooled values has its own rounding only.
    rest = capture(net[3], torch.rand(2, 100), fold=False).to(torch.float64)
    pooled = propagate(graph, region, "interval").boxes[-2]
    last = float32_error(rest, propagate(rest, BoxRegion(*pooled), "interval").boxes)
    assert last is not None
    assert bool((error > 1.1 * last).all())
