import pytest
import torch
from torch import nn

from holdfast.verifiers.certify import certify


def test_verified_and_broken_exclude_each_other():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    net.eval()
    x = torch.rand(12, 6)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # so that all classes occur
    y = net(x).argmax(1)
    found = {e: certify(net, x, y, 0.06, effort=e) for e in ("fast", "standard", "thorough")}
    proven = {e: [c.status == "unsat" for c in cs] for e, cs in found.items()}
    for less, more in (("fast", "standard"), ("standard", "thorough")):
        assert all(b or not a for a, b in zip(proven[less], proven[more], strict=True))
    assert 0 < sum(proven["fast"]) < sum(proven["thorough"]) < 12
    samples = (x + 0.06 * (2 * torch.rand(2000, 12, 6) - 1)).clamp(0, 1)
    changed = (net(samples).argmax(2) != y).any(0)
    for i, result in enumerate(found["thorough"]):
        assert result.status in ("sat", "unsat")
        if result.status == "unsat":
            assert not changed[i]
        else:
            assert result.x_adv is not None
            assert float((result.x_adv - x[i]).abs().max()) <= 0.06 + 1e-7
            assert int(net(result.x_adv[None]).argmax()) != int(y[i])


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.08), ("l1", 0.16)])
def test_branch_and_bound_over_balls(norm, eps):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    net.eval()
    x = torch.rand(16, 6)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
    y = net(x).argmax(1)
    less = certify(net, x, y, eps, norm)
    more = certify(net, x, y, eps, norm, effort="thorough", timeout_s=10.0)
    proven = [c.status == "unsat" for c in more]
    assert all(p for p, c in zip(proven, less, strict=True) if c.status == "unsat")
    assert norm != "l2" or sum(proven) > sum(c.status == "unsat" for c in less)
    noise = torch.randn(4000, 16, 6)
    size = noise.norm(dim=2, keepdim=True) if norm == "l2" else noise.abs().sum(2, keepdim=True)
    samples = (x + eps * noise / size).clamp(0, 1)
    changed = (net(samples).argmax(2) != y).any(0)
    assert bool(changed.any())
    assert not any(p and bool(c) for p, c in zip(proven, changed, strict=True))
