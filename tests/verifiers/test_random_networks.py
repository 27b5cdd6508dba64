"""Random networks of four kinds; the benchmark `random_bounds` does the same for two hundred."""

import importlib.util
from pathlib import Path

import pytest
import torch

from holdfast.proving import as_graph, bounds

FILE = Path(__file__).parents[2] / "benchmarks" / "_random_networks.py"


@pytest.fixture(scope="module")
def random_network():
    spec = importlib.util.spec_from_file_location("_random_networks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_network


@pytest.mark.parametrize("seed", [0, 1, 42, 27])
def test_bounds_of_random_networks_hold(random_network, seed):
    _, net, x = random_network(seed)
    x = x[:3]
    graph = as_graph(net, x)
    points = (x + 0.1 * (2 * torch.rand(60, *x.shape) - 1)).clamp(0, 1).double()
    values = net.double()(points.flatten(0, 1)).reshape(60, len(x), -1)
    for method in ("ibp", "alpha-crown"):
        lower, upper = bounds(graph, x, "linf:0.1", method=method, steps=1)
        assert bool((lower - 1e-9 <= values).all()), method
        assert bool((values <= upper + 1e-9).all()), method
