# ruff: noqa: N806 - A, C, D and W are the matrices of the literature
import dataclasses

import pytest
import torch
from networks import NAMES, network

from holdfast.graphs.builder import Builder, Call, Ref
from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box, Lines
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.maximum import MaxOver
from holdfast.graphs.operators.power import reciprocal
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.operators.sigmoid import Sigmoid, Tanh
from holdfast.graphs.operators.smooth_rectifiers import GELU, SiLU
from holdfast.graphs.operators.steps import Step
from holdfast.graphs.operators.take import Take
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.crown import two_sided
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import threat_region


def points(x, eps, norm, count=100):
    """Allowed inputs, corners among them: ``(count, n, *shape)``."""
    d = torch.rand(count, *x.shape, dtype=x.dtype) * 2 - 1
    if norm == "linf":
        return x + eps * torch.where(torch.rand_like(d) < 0.5, d.sign(), d)
    if norm == "l0":
        rank = torch.rand_like(d).flatten(2).argsort(2).argsort(2).reshape(d.shape)
        return torch.where(rank < eps, x + 3 * d, x.expand_as(d)).clamp(-6, 6)
    length = d.flatten(2).norm(p=int(norm[1]), dim=2)
    return x + eps * d / length.reshape(*length.shape, *[1] * (x.dim() - 1))


def violation(graph, x, eps, norm):
    """How far sampled values leave the boxes of any node or the linear bounds of the output."""
    region = threat_region(x, eps, norm, -6.0, 6.0)
    inputs = points(x, eps, norm)
    values = graph.values(inputs.flatten(0, 1))
    worst = -torch.inf
    for method in ("interval", "crown"):
        state = propagate(graph, region, method)
        for value, box in zip(values, state.boxes, strict=True):
            value = value.reshape(len(inputs), *box.lower.shape)
            worst = max(worst, float((box.lower - value).max()), float((value - box.upper).max()))
        size = graph.nodes[-1].size
        rows = (
            torch.eye(size, dtype=x.dtype)
            .expand(len(x), -1, -1)
            .reshape(len(x), size, *graph.output_shape)
        )
        lower, upper = two_sided(graph, len(graph.nodes) - 1, rows, state, region)
        value = values[-1].reshape(len(inputs), len(x), size)
        worst = max(worst, float((lower - value).max()), float((value - upper).max()))
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_runs_like_the_module_and_bounds_hold(name):
    module, shape = network(name)
    x = torch.randn(3, *shape)
    graph = capture(module, x)
    with torch.no_grad():
        torch.testing.assert_close(graph.to(torch.float32)(x), module(x), atol=1e-5, rtol=1e-4)
    graph = graph.to(torch.float64)
    balls = [("linf", 0.1), ("linf", 0.4)]
    if name in ("relu", "sigmoid", "conv2d", "residual"):
        balls += [("l2", 0.5), ("l1", 0.7), ("l0", 2)]
    for norm, eps in balls:
        # Float64 evaluation of the samples itself errs by some 1e-15 relative.
        assert violation(graph, x.double().clamp(-5, 5), eps, norm) < 1e-9, norm


def test_samples_do_not_touch_each_other():
    module, shape = network("conv2d")
    x = torch.randn(4, *shape, dtype=torch.float64)
    graph = capture(module, x.float()).to(torch.float64)
    together = propagate(graph, threat_region(x, 0.2, "linf", -9, 9))
    for i in range(4):
        alone = propagate(graph, threat_region(x[i : i + 1], 0.2, "linf", -9, 9))
        for a, b in zip(alone.boxes, together.boxes, strict=True):
            torch.testing.assert_close(a.lower[0], b.lower[i], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("curve", [Sigmoid(), Tanh(), GELU(), SiLU()])
def test_curves_enclose_at_any_parameters(curve):
    torch.manual_seed(0)
    lower = torch.randn(1, 1, 400, dtype=torch.float64) * 4
    upper = lower + torch.rand_like(lower) ** 3 * 8
    z = (
        lower
        + (upper - lower) * torch.linspace(0, 1, 201, dtype=torch.float64)[:, None, None, None]
    )
    for parameters in (None, torch.rand(2, 1, 1, 400, dtype=torch.float64)):
        lines = curve.relax(lower, upper, parameters)
        below = lines.lower_slope * z + lines.lower_intercept - curve.run(z)
        above = curve.run(z) - lines.upper_slope * z - lines.upper_intercept
        assert float(below.max()) < 1e-12
        assert float(above.max()) < 1e-12
        if parameters is None:  # the lines touch: they are no looser than they must be
            assert float(below.amax(0).min()) > -1e-3


class Wrong:
    """Operators with one planted defect each."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class SlopeSign(ReLU.__mro__[1]):
        run, interval, is_loose = ReLU.run, ReLU.interval, ReLU.is_loose

        def relax(self, lower, upper, parameters):
            good = ReLU().relax(lower, upper, parameters)
            return Lines(good.lower_slope, None, -good.upper_slope, good.upper_intercept)

        def magnitude(self, *boxes):
            return None

    @dataclasses.dataclass(frozen=True, slots=True)
    class NoIntercept(ReLU.__mro__[1]):
        run, interval, is_loose = ReLU.run, ReLU.interval, ReLU.is_loose

        def relax(self, lower, upper, parameters):
            good = ReLU().relax(lower, upper, parameters)
            return Lines(good.lower_slope, None, good.upper_slope, None)

        def magnitude(self, *boxes):
            return None

    @dataclasses.dataclass(frozen=True, slots=True)
    class SwappedBox(ReLU.__mro__[1]):
        run, relax, is_loose = ReLU.run, ReLU.relax, ReLU.is_loose

        def interval(self, *boxes):
            box = ReLU().interval(*boxes)
            return Box(box.upper, box.lower)

        def magnitude(self, *boxes):
            return None


def relus(graph, wrong):
    nodes = [
        dataclasses.replace(n, op=wrong if isinstance(n.op, ReLU) else n.op) for n in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def convs(graph, **change):
    """Convolutions that bound with other attributes than they run with."""

    class Bent(Conv):
        __slots__ = ()

        def run(self, *xs):
            return good.run(*xs)

    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if isinstance(node.op, Conv):
            good = node.op
            fields = {f.name: getattr(good, f.name) for f in dataclasses.fields(good)}
            nodes[i] = dataclasses.replace(node, op=Bent(**{**fields, **change}))
            break
    return dataclasses.replace(graph, nodes=tuple(nodes))


def worst(graph, x):
    """At small radii bounds are tight, so wrong steps show; at large ones neurons are unstable."""
    return max(violation(graph, x, eps, "linf") for eps in (0.01, 0.1, 0.4))


@pytest.mark.parametrize("defect", ["SlopeSign", "NoIntercept", "SwappedBox"])
def test_planted_defects_of_the_rectifier_are_caught(defect):
    module, shape = network("relu")
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(module, x.float()).to(torch.float64)
    assert worst(graph, x) < 1e-9
    assert worst(relus(graph, getattr(Wrong, defect)()), x) > 1e-3


@pytest.mark.parametrize("change", [{"weight": -1}, {"bias": -1}])
def test_planted_defects_of_the_convolution_are_caught(change):
    module, shape = network("residual")
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(module, x.float()).to(torch.float64)
    first = next(n.op for n in graph.nodes if isinstance(n.op, Conv))
    ((name, _),) = change.items()
    bent = convs(graph, **{name: -getattr(first, name)})
    assert worst(bent, x) > 1e-3


class Misread:
    """Convolutions whose way back is off."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class Stride(Conv):
        """Every window one element further."""

        def pull(self, rows, boxes, parameters=None):
            pulled = Conv.pull(self, rows, boxes, parameters)
            return pulled._replace(coefficients=[c.roll(1, -1) for c in pulled.coefficients])

        def pull_window(self, rows, boxes):
            return None

    @dataclasses.dataclass(frozen=True, slots=True)
    class Padding(Conv):
        """The border of the input is not read, as if the padding were not there."""

        def pull(self, rows, boxes, parameters=None):
            pulled = Conv.pull(self, rows, boxes, parameters)
            inner = [c.clone() for c in pulled.coefficients]
            for c in inner:
                c[..., 0], c[..., -1] = 0.0, 0.0
            return pulled._replace(coefficients=inner)

        def pull_window(self, rows, boxes):
            return None


@pytest.mark.parametrize("defect", ["Stride", "Padding"])
def test_misread_windows_are_caught(defect):
    module, shape = network("residual")
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(module, x.float()).to(torch.float64)
    kind = getattr(Misread, defect)
    nodes = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Conv):
            op = kind(**{f.name: getattr(op, f.name) for f in dataclasses.fields(op)})
        nodes.append(dataclasses.replace(node, op=op))
    assert worst(Graph(tuple(nodes)), x) > 1e-3


def test_affine_networks_are_bounded_exactly():
    torch.manual_seed(1)
    weights = [torch.randn(7, 5), torch.randn(3, 7)]
    builder = Builder((5,))
    call = Call("", (), {}, builder, "test")
    ref = call.emit(Linear(weights[0], torch.randn(7)), Ref(0, (5,)))
    graph = builder.graph(call.emit(Linear(weights[1], torch.zeros(3)), ref)).to(torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64)
    W = weights[1].double() @ weights[0].double()
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        region = threat_region(x, 0.3, norm, -99.0, 99.0)
        state = propagate(graph, region)
        rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        lower, upper = two_sided(graph, 2, rows, state, region)
        radius = 0.3 * W.norm(p=dual, dim=1)
        torch.testing.assert_close(lower, graph(x) - radius, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(upper, graph(x) + radius, atol=1e-9, rtol=1e-9)


def test_maximum_reads_one_element_where_it_dominates():
    op = MaxOver(0)
    box = Box(torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 1.0]]))
    for sign in (1.0, -1.0):
        pulled = op.pull(torch.full((1, 1, 1), sign), [box])
        torch.testing.assert_close(pulled.coefficients[0], torch.tensor([[[sign, 0.0]]]))
        assert float(pulled.constant) == 0


def test_padding_and_repeated_elements_pull_back():
    op = Take(torch.tensor([0, 0, -1, 2]), fill=5.0)
    z = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(op.run(z), torch.tensor([[1.0, 1.0, 5.0, 3.0]]))
    pulled = op.pull(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), [Box(z, z)])
    torch.testing.assert_close(pulled.coefficients[0], torch.tensor([[[3.0, 0.0, 4.0]]]))
    assert float(pulled.constant) == 15


def test_steps_cover_both_sides_of_a_jump():
    box = Step("floor").interval(Box(torch.tensor([[1.0]]), torch.tensor([[1.0]])))
    assert float(box.lower) == 0
    assert float(box.upper) == 1


def test_nothing_is_claimed_where_a_reciprocal_may_divide_by_zero():
    builder = Builder((1,))
    call = Call("", (), {}, builder, "test")
    graph = builder.graph(reciprocal(call, Ref(0, (1,)))).to(torch.float64)
    region = threat_region(torch.zeros(1, 1, dtype=torch.float64), 1.0, "linf", -1, 1)
    state = propagate(graph, region)
    assert float(state.boxes[-1].upper) == torch.inf
    lower, upper = two_sided(graph, 1, torch.ones(1, 1, 1, dtype=torch.float64), state, region)
    assert not bool((lower > -1e300) | (upper < 1e300))
