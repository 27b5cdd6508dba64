# ruff: noqa: N806 - A, C, D and W are the matrices of the literature
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import propagation
from holdfast.verifiers.alpha_crown import sharpen
from holdfast.verifiers.bounds import bounds, margins
from holdfast.verifiers.crown import windowed
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import threat_region


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    ).eval()


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(4)
    return torch.rand(3, 4)


METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")


def test_methods_are_ordered_and_hold(net, x):
    found = {m: bounds(net, x, 0.1, method=m, domain=None) for m in METHODS}
    samples = net(x + 0.1 * (2 * torch.rand(500, 3, 4) - 1)).double()
    for lower, upper in found.values():
        assert bool((samples >= lower - 1e-6).all())
        assert bool((samples <= upper + 1e-6).all())
    widths = [float((found[m].upper - found[m].lower).detach().mean()) for m in METHODS]
    assert widths == sorted(widths, reverse=True)
    assert widths[3] < 0.98 * widths[2] < 0.9 * widths[0]


def test_zero_radius_is_the_forward_pass(net, x):
    for method in METHODS:
        lower, upper = bounds(net, x, 0.0, method=method)
        torch.testing.assert_close(lower.detach(), net(x).detach().double(), atol=1e-6, rtol=1e-6)
        assert bool((lower <= upper).all())


def test_bounds_grow_with_the_radius(net, x):
    previous = None
    for eps in (0.01, 0.03, 0.1, 0.3):
        lower, upper = bounds(net, x, eps, method="interval", domain=None)
        width = (upper - lower).detach()
        assert previous is None or bool((width >= previous).all())
        previous = width


def test_gradients_match_finite_differences(net, x):
    graph = capture(net, x, fold=False)
    eps = torch.full((3,), 0.05, dtype=torch.float64, requires_grad=True)
    for method in METHODS:
        for norm in ("linf", "l2", "l1"):
            value = bounds(graph, x, eps, norm, method=method, domain=None).lower.sum()
            (slope,) = torch.autograd.grad(value, eps)
            step = 1e-6
            with torch.no_grad():
                ends = [
                    bounds(graph, x, eps + s, norm, method=method, domain=None).lower.sum()
                    for s in (step, -step)
                ]
            assert float(slope.sum()) == pytest.approx(
                float((ends[0] - ends[1]) / (2 * step)), rel=2e-3
            )


def test_margins_rows():
    rows = margins(torch.tensor([1, 0]), 3)
    assert rows.tolist() == [[[-1, 1, 0], [0, 1, -1]], [[1, -1, 0], [1, 0, -1]]]


def test_float64_lies_below_float32_and_covers_exact_rationals(net, x):
    """Bounds with rounding errors hold for the network evaluated in exact arithmetic."""
    from fractions import Fraction

    graph = capture(net, x, fold=False)
    lower, upper = bounds(graph, x, 0.0, domain=None)
    layers = [m for m in net if isinstance(m, nn.Linear)]
    for i, row in enumerate(x.tolist()):
        z = [Fraction(v) for v in row]
        for layer in layers:
            W, b = layer.weight.tolist(), layer.bias.tolist()
            z = [
                sum((Fraction(w) * v for w, v in zip(r, z, strict=True)), Fraction(c))
                for r, c in zip(W, b, strict=True)
            ]
            z = z if layer is layers[-1] else [max(v, Fraction(0)) for v in z]
        for j, v in enumerate(z):
            assert Fraction(float(lower[i, j])) <= v <= Fraction(float(upper[i, j]))


def test_sharpened_boxes_are_tighter_and_hold(net, x):
    graph = capture(net, x, fold=False).to(torch.float64)
    region = threat_region(x.double(), 0.2, "linf", -9, 9)
    state = propagate(graph, region)
    better = sharpen(graph, region, state, 10)
    values = graph.values(
        (x.double() + 0.2 * (2 * torch.rand(400, 3, 4, dtype=torch.float64) - 1)).flatten(0, 1)
    )
    shrunk = 0.0
    for value, old, new in zip(values, state.boxes, better.boxes, strict=True):
        value = value.reshape(400, 3, -1)
        assert bool((value >= new.lower.flatten(1) - 1e-9).all())
        assert bool((value <= new.upper.flatten(1) + 1e-9).all())
        assert bool((new.lower >= old.lower - 1e-12).all())
        shrunk += float((new.lower - old.lower).sum())
    assert shrunk > 0


def test_unknown_method_is_refused(net, x):
    with pytest.raises(ValueError, match="allowed: ibp"):
        bounds(net, x, 0.1, method="magic")


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0), ("l0", 3)])
def test_windows_give_the_bounds_of_dense_coefficients(norm, eps, monkeypatch):
    torch.manual_seed(5)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1), nn.ReLU()]
    graph = capture(nn.Sequential(*layers).eval(), torch.rand(1, 2, 9, 8), fold=False)
    graph = graph.to(torch.float64)
    # A single sample: dense coefficients then handle exactly the loose elements, as windows do.
    region = threat_region(torch.rand(1, 2, 9, 8, dtype=torch.float64), eps, norm)
    kept = propagate(graph, region)
    assert bool((kept.boxes[3].lower > propagate(graph, region, "interval").boxes[3].lower).any())
    monkeypatch.setattr(propagation, "windowed", lambda *_: None)
    dense = propagate(graph, region)
    for a, b in zip(kept.boxes, dense.boxes, strict=True):
        torch.testing.assert_close(a.lower, b.lower, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(a.upper, b.upper, atol=1e-12, rtol=1e-12)


def test_windows_follow_both_paths_of_a_residual_block(monkeypatch):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 3, 3, 2, 1)
            self.first, self.second = nn.Conv2d(3, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1)
            self.shortcut = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            z = torch.relu(self.stem(x))
            return torch.relu(self.second(torch.relu(self.first(z))) + self.shortcut(z))

    torch.manual_seed(8)
    graph = capture(Block().eval(), torch.rand(1, 1, 24, 24), fold=False).to(torch.float64)
    region = threat_region(torch.rand(1, 1, 24, 24, dtype=torch.float64), 0.1, "linf")
    kept = []

    def noted(*args):
        kept.append(windowed(*args))
        return kept[-1]

    monkeypatch.setattr(propagation, "windowed", noted)
    sparse = propagate(graph, region)
    assert sum(k is not None for k in kept) >= 4
    monkeypatch.setattr(propagation, "windowed", lambda *_: None)
    dense = propagate(graph, region)
    for a, b in zip(sparse.boxes, dense.boxes, strict=True):
        torch.testing.assert_close(a.lower, b.lower, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(a.upper, b.upper, atol=1e-12, rtol=1e-12)
