import pytest
import torch
from torch import nn

from holdfast.errors import GraphError, ThreatError
from holdfast.model import Model
from holdfast.perturbations.ball import Ball
from holdfast.proving import bounds, certified_radius, smooth


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(4)
    return torch.rand(5, 6)


def test_bounds_read_threats_and_hold(net, x):
    for threat in ("linf:0.1", "l2:0.2", "l1:0.3", "l0:1", Ball("linf", torch.full((5,), 0.1))):
        lower, upper = (b.detach() for b in bounds(net, x, threat))
        assert lower.shape == upper.shape == (5, 3)
        out = net(x).detach().double()
        assert bool((lower <= out + 1e-6).all())
        assert bool((out <= upper + 1e-6).all())


def test_domain_and_normalisation_come_from_the_model(net, x):
    wrapped = Model(net, domain=(-1.0, 1.0), mean=0.5, std=0.5)
    inner = nn.Sequential(nn.Identity(), net)
    inner.forward = lambda z: net((z - 0.5) / 0.5)  # type: ignore[method-assign]
    lower = bounds(wrapped, x, "linf:0.05").lower.detach()
    points = (x + 0.05 * (2 * torch.rand(200, 5, 6) - 1)).clamp(-1, 1)
    values = net((points - 0.5) / 0.5).detach().double().amin(0)
    assert bool((lower <= values + 1e-6).all())
    assert float((values - lower).mean()) < 0.2


def test_weights_of_a_live_module_get_gradients(net, x):
    lower = bounds(net, x, "linf:0.1", method="crown-ibp").lower
    net.zero_grad()
    lower.sum().backward()
    weight = net[0].weight
    step, direction = 1e-3, torch.randn_like(weight)
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(sign * step * direction)
            ends.append(bounds(net, x, "linf:0.1", method="crown-ibp").lower.sum().item())
            weight.sub_(sign * step * direction)
    slope = (weight.grad * direction).sum().item()
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_radius_is_certified_and_nearly_the_largest(net, x, norm):
    y = net(x).argmax(1)
    radius = certified_radius(net, x, y, norm, tolerance=0.01)
    assert radius.shape == (5,)
    assert bool((radius > 0).any())
    rows = torch.eye(3)[y].unsqueeze(1) - torch.eye(3)
    wrong = (torch.arange(3) != y.unsqueeze(1)).double()

    def least(eps):
        lower = bounds(net, x, Ball(norm, eps), C=rows).lower.detach()
        return torch.where(wrong > 0, lower, torch.inf).amin(1)

    # A trial may use boxes of failed, larger radii, which plain bounds at the radius lack.
    assert bool((least(radius)[radius > 0] > -0.02).all())
    assert bool((net(_changed(x, radius.float(), norm)).argmax(2) == y).all())
    larger = radius + 1 if norm == "l0" else radius * 1.02
    is_capped = radius >= (6 if norm == "l0" else 0.95)
    # Proofs at larger radii fail, up to what boxes of failed trials have gained.
    assert bool(((least(larger) <= 1e-2) | is_capped | (radius == 0)).all())


def _changed(x, radius, norm):
    """Random inputs of the domain at most ``radius`` away, many of them sparse: ``(300, n, 6)``."""
    d = torch.randn(300, *x.shape) * (torch.rand(300, *x.shape) < 0.5)
    if norm == "l0":
        rank = torch.rand_like(d).argsort(2).argsort(2)
        return torch.where(rank < radius[:, None], torch.rand_like(d).round(), x)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    length = torch.linalg.vector_norm(d, order, 2, keepdim=True).clamp(min=1e-9)
    return (x + radius[:, None] * d / length).clamp(0, 1)


def test_a_better_method_certifies_more_and_wrong_classes_nothing(net, x):
    y = net(x).argmax(1)
    found = [certified_radius(net, x, y, method=m) for m in ("ibp", "crown", "alpha-crown")]
    assert bool((found[2] >= 0.98 * found[1]).all())
    assert float(found[0].mean()) < float(found[1].mean()) < float(found[2].mean())
    assert not bool(certified_radius(net, x, (y + 1) % 3).any())


def test_smoothing_takes_models_and_modules(net, x):
    plain = smooth(net, 0.05, n=500).certify(x[:2])
    wrapped = smooth(Model(net), 0.05, n=500).certify(x[:2])
    assert plain.prediction.tolist() == wrapped.prediction.tolist()
    assert (plain.radius == wrapped.radius).all()


def test_bad_input_is_told(net, x):
    with pytest.raises(ThreatError, match="norm ball"):
        bounds(net, x, object.__new__(_Odd))
    with pytest.raises(ValueError, match="allowed: ibp"):
        bounds(net, x, "linf:0.1", method="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed: linf"):
        certified_radius(net, x, torch.zeros(5, dtype=torch.long), "l3")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"ends in \.onnx"):
        bounds("model.pt", x, "linf:0.1")


class _Odd:
    def describe(self):
        return "rotation:30"
