# ruff: noqa: N806 - C is the matrix of the literature
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import trace
from holdfast.verifiers.bounds import bounds, margins
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.trainable import blend, relax

METHODS = ("ibp", "crown-ibp", "crown")


@pytest.fixture
def module():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    x, y = torch.rand(5, 1, 6, 6, dtype=torch.float64), torch.arange(5) % 4
    return x, y, BoxRegion((x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_weights_match_finite_differences(module, batch, method):
    x, y, region = batch
    traced, C = trace(module, x), margins(y, 4)
    relax(traced.graph(), region, C, method).lower.sum().backward()
    for parameter in module.parameters():
        direction, step = torch.randn_like(parameter), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                ends.append(float(relax(traced.graph(), region, C, method).lower.sum()))
                parameter.sub_(sign * step * direction)
        assert float((parameter.grad * direction).sum()) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-5
        )


def test_bounds_hold_and_methods_are_ordered(module, batch):
    x, y, region = batch
    graph, C = trace(module, x).graph(), margins(y, 4)
    lower = {m: relax(graph, region, C, m).lower.detach() for m in METHODS}
    share = torch.rand(300, *x.shape, dtype=torch.float64)
    samples = region.lower + share * (region.upper - region.lower)
    logits = module(samples.flatten(0, 1)).reshape(300, 5, 4)
    values = torch.einsum("nkm,snm->snk", C.double(), logits).amin(0).detach()
    for bound in lower.values():
        assert bool((bound <= values + 1e-12).all())
    widths = [float((values - lower[m]).sum()) for m in METHODS]
    assert widths[2] < min(widths[:2])


def test_it_is_the_certified_bound_up_to_rounding(module, batch):
    x, y, region = batch
    graph, C = trace(module, x).graph(), margins(y, 4)
    for method in ("ibp", "crown-ibp"):
        proven = bounds(graph, x, 0.05, method=method, C=C).lower.detach()
        quick = [relax(graph, region, C, m).lower.detach() for m in {method, "ibp"}]
        best = torch.stack(quick).amax(0)
        assert bool((proven <= best).all())
        torch.testing.assert_close(proven, best, atol=1e-8, rtol=1e-8)


def test_a_trace_sees_new_weights_and_given_statistics(module, batch):
    x = batch[0]
    traced = trace(module, x)
    with torch.no_grad():
        module[0].weight.mul_(3)
    torch.testing.assert_close(traced.graph()(x), module(x))
    mean = torch.full((3,), 0.7, dtype=torch.float64)
    other = traced.graph({"1.running_mean": mean})(x)
    assert not torch.allclose(other, module(x))
    module[1].running_mean.copy_(mean)
    torch.testing.assert_close(other, module(x))


def test_blending_lies_between_its_ends(module, batch):
    x, y, region = batch
    graph, C = trace(module, x).graph(), margins(y, 4)
    ends = [relax(graph, region, C, m).lower for m in ("ibp", "crown-ibp")]
    torch.testing.assert_close(blend(graph, region, C, 0.0).lower, ends[0])
    torch.testing.assert_close(blend(graph, region, C, 0.25).lower, 0.75 * ends[0] + 0.25 * ends[1])
    logits = blend(graph, region, C, 1.0).logits()
    assert logits.shape == (5, 4)
    assert not bool(logits[:, 0].any())


def test_training_raises_the_bound(module, batch):
    x, y, region = batch
    traced, C, zeros = trace(module, x), margins(y, 4), torch.zeros(5, dtype=torch.long)
    losses = []
    for _ in range(40):
        relaxed = relax(traced.graph(), region, C)
        loss = nn.functional.cross_entropy(relaxed.logits(), zeros)
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), grads, strict=True):
                p.sub_(0.5 * g)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
