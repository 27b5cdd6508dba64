# ruff: noqa: N806 - A, C, D and W are the matrices of the literature
import copy

import pytest
import torch
from torch import nn

from holdfast.graphs.operator import Box
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import alpha_crown, element_slopes, elements, propagation
from holdfast.verifiers.alpha_crown import default_choices, optimise, optimise_rows, sharpen
from holdfast.verifiers.bounds import bounds, margins
from holdfast.verifiers.crown import pull_back
from holdfast.verifiers.elements import Elements
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion, threat_region


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


class Gated(nn.Module):
    """An activation stands before a value that does not depend on it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.q, self.k, self.v, self.head = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x):
        z = self.embed(x)
        gate = torch.tanh(self.q(z) * self.k(z))
        return self.head(gate * self.v(z))


def test_slopes_of_activations_beside_a_value_are_left_alone(x):
    torch.manual_seed(5)
    net = Gated().eval()
    found = [bounds(net, x, 0.1, method=m, domain=None) for m in ("crown", "alpha-crown")]
    samples = net(x + 0.1 * (2 * torch.rand(500, 3, 4) - 1)).double()
    for lower, upper in found:
        assert bool((samples >= lower - 1e-6).all())
        assert bool((samples <= upper + 1e-6).all())
    assert bool((found[1].lower >= found[0].lower - 1e-9).all())


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


def together(graph, node, readers, state, region, rounding=True):
    """Boxes by full coefficients for all elements, none of which ends early.

    Where the end nearer to zero proves the sign, the other stays as it was.
    """
    box = state.boxes[node.index]
    loose = torch.stack([op.is_loose(box) for op in readers]).any(0).flatten(1)
    found = propagation._refined_together(graph, node, state, region, loose, rounding)
    above = box.upper < -box.lower
    low = torch.where(above & (found.upper <= 0), box.lower, found.lower)
    high = torch.where(~above & (found.lower >= 0), box.upper, found.upper)
    return Box(low, high)


def rectified(graph, *states):
    """The boxes of every rectifier's input in each state."""
    for node in graph.nodes:
        if isinstance(node.op, ReLU):
            yield tuple(s.boxes[node.inputs[0]] for s in states)


def assert_alike(graph, rows, dense):
    """The same signs are proven, and what is open has the same bounds."""
    for a, b in rectified(graph, rows, dense):
        mask = (b.lower < 0) & (b.upper > 0)
        assert torch.equal(a.lower >= 0, b.lower >= 0)
        assert torch.equal(a.upper <= 0, b.upper <= 0)
        torch.testing.assert_close(a.lower[mask], b.lower[mask], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(a.upper[mask], b.upper[mask], atol=1e-12, rtol=1e-12)


def assert_unstable_no_looser(graph, rows, dense):
    """Rows that ended early prove the sign; all others are bounded as before, or better."""
    for a, b in rectified(graph, rows, dense):
        mask = (a.lower < 0) & (a.upper > 0)
        assert bool((a.lower >= b.lower - 1e-12)[mask].all())
        assert bool((a.upper <= b.upper + 1e-12)[mask].all())
        assert bool(((b.lower < 0) & (b.upper > 0))[mask].all())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0), ("l0", 3)])
def test_rows_give_the_bounds_of_dense_coefficients(norm, eps, monkeypatch):
    torch.manual_seed(5)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1), nn.ReLU()]
    graph = capture(nn.Sequential(*layers).eval(), torch.rand(1, 2, 9, 8), fold=False)
    graph = graph.to(torch.float64)
    # A single sample: all rows together then hold exactly the loose elements.
    region = threat_region(torch.rand(1, 2, 9, 8, dtype=torch.float64), eps, norm)
    rows = propagate(graph, region)
    assert bool((rows.boxes[3].lower > propagate(graph, region, "interval").boxes[3].lower).any())
    plain = propagate(graph, region, rounding=False)
    monkeypatch.setattr(propagation, "refine", together)
    assert_alike(graph, plain, propagate(graph, region, rounding=False))
    # Windows are charged for their own size only.
    assert_unstable_no_looser(graph, rows, propagate(graph, region))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 2, 1)
        self.first, self.second = nn.Conv2d(3, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(72, 7)

    def forward(self, x):
        z = torch.relu(self.stem(x))
        z = torch.relu(self.second(torch.relu(self.first(z))) + self.shortcut(z))
        return self.head(torch.relu(self.pool(z) - 0.1).flatten(1)).relu()


@pytest.mark.parametrize("chunk", [1 << 9, 1 << 19])
def test_rows_follow_both_paths_of_a_residual_block(monkeypatch, chunk):
    torch.manual_seed(8)
    graph = capture(Block().eval(), torch.rand(1, 1, 24, 24), fold=False).to(torch.float64)
    x = torch.rand(3, 1, 24, 24, dtype=torch.float64)
    # Samples with few and with many unstable neurons: rows of one sample, rows of several.
    region = threat_region(x, torch.tensor([0.2, 0.05, 0.01]).double(), "linf")
    monkeypatch.setattr(elements, "CHUNK", 8 * chunk)
    ended, keep = [], Elements._sorted_out

    def noted(self, front, index):
        after = keep(self, front, index)
        ended.append(len(front.which) - len(after.which))
        return after

    monkeypatch.setattr(Elements, "_sorted_out", noted)
    rows = propagate(graph, region)
    assert sum(ended) > 0
    monkeypatch.setattr(Elements, "_may_settle", lambda *_: False)
    full = propagate(graph, region)
    assert_unstable_no_looser(graph, rows, full)
    plain = propagate(graph, region, rounding=False)
    monkeypatch.setattr(propagation, "refine", together)
    assert_unstable_no_looser(graph, full, propagate(graph, region))
    # The charges for rounding differ with the size of rows, the bounds themselves do not.
    dense = propagate(graph, region, rounding=False)
    assert_unstable_no_looser(graph, plain, dense)
    assert_unstable_no_looser(graph, dense, plain)


def test_early_ends_need_a_proof(monkeypatch):
    """A row that ended although its sign was open would leave the neuron to a wrong relaxation."""
    torch.manual_seed(8)
    graph = capture(Block().eval(), torch.rand(1, 1, 24, 24), fold=False).to(torch.float64)
    x = torch.rand(2, 1, 24, 24, dtype=torch.float64)
    region = threat_region(x, 0.1, "linf")

    def worst():
        state = propagate(graph, region)
        z = (x + 0.1 * (2 * torch.rand(200, *x.shape, dtype=torch.float64) - 1)).clamp(0, 1)
        out = 0.0
        for value, box in zip(graph.values(z.flatten(0, 1)), state.boxes, strict=True):
            value = value.reshape(200, *box.lower.shape)
            out = max(out, float((box.lower - value).max()), float((value - box.upper).max()))
        return out

    assert worst() < 1e-9
    keep = Elements._keep
    monkeypatch.setattr(Elements, "_keep", lambda self, f, v: keep(self, f, v + 0.5))
    assert worst() > 1e-3


def test_slopes_of_windows_are_as_good_as_those_of_full_rows(monkeypatch):
    torch.manual_seed(8)
    graph = capture(Block().eval(), torch.rand(1, 1, 24, 24), fold=False).to(torch.float64)
    region = threat_region(torch.rand(2, 1, 24, 24, dtype=torch.float64), 0.1, "linf")
    state = propagate(graph, region)
    windows = sharpen(graph, region, state, 10)
    monkeypatch.setattr(alpha_crown, "keeps_rows", lambda *_: False)
    full = sharpen(graph, region, state, 10)
    gained = 0.0
    for node in graph.nodes:
        if isinstance(node.op, ReLU):
            a, b, old = (s.boxes[node.inputs[0]] for s in (windows, full, state))
            open_ = (old.lower < 0) & (old.upper > 0)
            torch.testing.assert_close(a.lower[open_], b.lower[open_], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(a.upper[open_], b.upper[open_], atol=2e-3, rtol=2e-3)
            gained += float((a.lower - old.lower).sum())
    assert gained > 0.1


def test_slopes_of_one_part_are_not_taken_for_another(monkeypatch):
    torch.manual_seed(4)
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(75, 3)).eval()
    x = torch.rand(2, 1, 10, 10)
    whole = bounds(net, x, 0.1, method="alpha-crown", steps=3)
    # Rows of a few elements at a time; all parts but the last are of one size.
    monkeypatch.setattr(elements, "CHUNK", 8 * 100 * 4)
    torch.testing.assert_close(bounds(net, x, 0.1, method="alpha-crown", steps=3), whole)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown"])
def test_float32_differs_by_rounding_alone(net, x, method):
    torch.manual_seed(2)
    for model in (net, Gated().eval()):
        single, double = (
            bounds(model, x, 0.03, method=method, dtype=dtype, steps=5)
            for dtype in (torch.float32, torch.float64)
        )
        for ours, reference in zip(single, double, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_changed_in_place_change_the_bounds(dtype):
    torch.manual_seed(6)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 3)).eval().to(dtype)
    x = torch.rand(3, 2, 12, 12, dtype=dtype)
    graph = capture(net, x, fold=False)
    before = bounds(graph, x, 0.1, dtype=dtype)
    for node in graph.nodes:
        if hasattr(node.op, "weight"):
            node.op.weight.data.mul_(1.5)
    after = bounds(graph, x, 0.1, dtype=dtype)
    fresh = copy.deepcopy(graph)
    assert not torch.equal(after.lower, before.lower)
    torch.testing.assert_close(after, bounds(fresh, x, 0.1, dtype=dtype), rtol=1e-6, atol=1e-6)


def test_rows_take_the_best_of_several_searches():
    torch.manual_seed(4)
    layers = [nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)]
    x = torch.rand(3, 6)
    graph = capture(nn.Sequential(*layers).eval(), x)
    eps = torch.tensor([0.1, 0.3, 0.8]).unsqueeze(1)
    region = BoxRegion(x - eps, x + eps)
    state, A = propagate(graph, region, rounding=False), torch.eye(5).expand(3, -1, -1)
    last = len(graph.nodes) - 1

    def value(choices):
        found = pull_back(graph, last, A, state, parameters=choices.parameters, rounding=False)
        return region.minimum(found.A) + found.constant

    start = default_choices(graph, state, last, 5)
    args = {"steps": 12, "momentum": alpha_crown.MOMENTUM}
    ends = torch.stack(
        [
            optimise(graph, last, A, state, region, start, rate=rate, **args)[1]
            for rate in alpha_crown.RATES
        ]
    )
    best = value(optimise_rows(graph, last, A, state, region, 12))
    assert len(ends.argmax(0).unique()) == len(ends)  # each is the best of some row
    torch.testing.assert_close(best, ends.amax(0))
    assert bool((best > value(start)).all())


def test_elements_that_no_longer_gain_are_left(monkeypatch):
    torch.manual_seed(9)
    layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()]
    x = torch.rand(3, 1, 12, 12, dtype=torch.float64)
    graph = capture(nn.Sequential(*layers, nn.Conv2d(4, 2, 3)).eval(), x.float(), fold=False)
    graph = graph.to(torch.float64)
    exact = (graph, propagate(graph, region := BoxRegion(x - 0.2, x), rounding=False), region)
    node = graph.nodes[5]
    loose = torch.rand(3, node.size) < 0.7
    rows, least = [], Elements.least

    def counted(self, pairs):
        rows.append(len(pairs))
        return least(self, pairs)

    monkeypatch.setattr(Elements, "least", counted)
    short = element_slopes.sharpened(exact, exact, node, loose, element_slopes.ROUND)
    rows.clear()
    found = element_slopes.sharpened(exact, exact, node, loose, 20)
    assert sorted(rows[:-1], reverse=True) == rows[:-1]
    assert rows[-2] < 0.8 * rows[0]
    monkeypatch.setattr(element_slopes, "LEAST_GAIN", -1.0)
    full = element_slopes.sharpened(exact, exact, node, loose, 20)
    width = (full.upper - full.lower).flatten(1)[loose]
    for sign, ours, first, longest in zip((1, -1), found, short, full, strict=True):
        # Nothing that was reached is lost, and nothing worth a look is missed.
        assert bool((sign * (ours - first) >= -1e-12).all())
        missed = sign * (longest - ours).flatten(1)[loose] / width
        assert float(missed.max()) < 0.01
        assert float(missed.mean()) < 0.001
    assert bool((found.lower > short.lower).any())
