"""The same values, another gradient: operator by operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from holdfast.trust.softened import Softened, kind, words

W = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
X = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))


def rewritten_relu(x):
    return (x > 0).float() * x


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def zeroed_in_place(x):
    y = x * 1
    y[y.abs() < 0.5] = 0
    return y


def largest(x):
    chosen = x.topk(3, 1).indices
    return x * torch.zeros_like(x).scatter_(1, chosen, 1.0)


def through_numpy(x):
    return torch.from_numpy((x.detach().cpu().numpy() * 4).round() / 4)


def in_place(x):
    return x.mul(5).round_().div(5)


def inner_loop(x):
    z = x.detach().clone()
    for _ in range(3):
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(z.square().sum(), z)
        z = z - 0.1 * gradient
    return z.detach()


HARD = {
    "round": lambda x: torch.round(3 * x) / 3,
    "floor": lambda x: torch.ops.aten.floor.default(3 * x),
    "sign": torch.sign,
    "remainder": lambda x: x - x % 0.25,
    "integer cast": lambda x: (7 * x).int() / 7,
    "threshold": lambda x: x * (x > 0.5),
    "threshold ": lambda x: (x.unsqueeze(-1) > torch.arange(3.0)).float().mean(-1),
    "threshold  ": lambda x: x.masked_fill(x < 0.7, 0.0),
    "threshold   ": zeroed_in_place,
    "topk": largest,
    "bridge": through_numpy,
    "round ": in_place,
    "detach": inner_loop,
}


def run(f, mode=None):
    """The output of a layer after ``f``, and the gradient of its sum."""
    with torch.enable_grad():
        if mode is not None:
            mode.__enter__()
        try:
            x = X.clone().requires_grad_(True)
            out = F.linear(f(x), W)
        finally:
            if mode is not None:
                mode.__exit__(None, None, None)
        if not out.requires_grad:
            return out, torch.zeros_like(X)
        (gradient,) = torch.autograd.grad(out.sum(), x, allow_unused=True)
    return out.detach(), torch.zeros_like(X) if gradient is None else gradient


@pytest.mark.parametrize("name", HARD)
def test_same_bits_and_another_gradient(name):
    mode = Softened()
    out, gradient = run(HARD[name])
    same, smooth = run(HARD[name], mode)
    assert torch.equal(out, same.detach())
    assert name.strip() in {kind(met) for met, count in mode.met.items() if count}
    assert float((smooth - gradient).abs().sum()) > 1.0


@pytest.mark.parametrize("f", [rewritten_relu, leaky, torch.relu, F.gelu, lambda x: x.clamp(0, 1)])
def test_kinks_are_left_alone(f):
    mode = Softened()
    out, gradient = run(f)
    same, smooth = run(f, mode)
    assert torch.equal(out, same)
    assert torch.equal(gradient, smooth)
    assert not any(mode.met.values())


STAIRS = ("round", "floor", "remainder", "integer cast")


@pytest.mark.parametrize("name", ["round", "integer cast"])
def test_wide_rounding_has_the_gradient_of_what_was_rounded(name):
    _, smooth = run(HARD[name], Softened(width=1.0))
    _, plain = run(lambda x: x)
    torch.testing.assert_close(smooth, plain)


@pytest.mark.parametrize("name", STAIRS)
def test_narrow_rounding_follows_the_nearest_step(name):
    """Along a line, gradients are the slope where the answer jumps and nothing in between."""
    x = torch.linspace(-1.04, 1.03, 4001)[None]
    with torch.enable_grad(), Softened(width=0.05):
        leaf = x.clone().requires_grad_(True)
        out = F.linear(HARD[name](leaf), torch.eye(x.shape[1]))
        (slope,) = torch.autograd.grad(out.sum(), leaf)
    out, slope = out.detach()[0], slope[0]
    jumps = (out.diff().abs() > 0.02).nonzero().squeeze(1)
    far = (x[0][:, None] - x[0][jumps]).abs().amin(1) > 0.05
    assert len(jumps) >= 4
    assert float(slope[far].abs().max()) < 0.01 * float(slope.max())
    assert float(slope[jumps].min()) > 0.9 * float(slope.max())
    climbed = float(slope.sum()) * float(x[0, 1] - x[0, 0])
    assert climbed == pytest.approx(float(out[-1] - out[0]), rel=0.05)


def test_only_the_named_operators_are_replaced():
    def both(x):
        return torch.round(x) + torch.sign(x)

    _, signs = run(both, Softened(("sign",)))
    _, neither = run(both, Softened(("floor",)))
    assert float(signs.abs().sum()) > 0
    assert float(neither.abs().sum()) == 0


def test_a_row_does_not_depend_on_the_others():
    def alone(f):
        rows = []
        for row in X.split(1):
            with torch.enable_grad(), Softened(("threshold@1", "topk@1")):
                x = row.clone().requires_grad_(True)
                out = f(x).square().sum()
            rows.append(torch.autograd.grad(out, x)[0])
        return torch.cat(rows)

    for f in (HARD["threshold"], HARD["topk"]):
        with torch.enable_grad(), Softened(("threshold@1", "topk@1")):
            x = X.clone().requires_grad_(True)
            out = f(x).square().sum()
        torch.testing.assert_close(torch.autograd.grad(out, x)[0], alone(f))


def test_the_models_own_gradients_are_counted():
    mode = Softened()
    run(inner_loop, mode)
    assert mode.n_inner_gradients == 3


def test_words():
    assert words(["round"]) == "round"
    assert words(["threshold@1", "threshold@2", "sign"]) == "a threshold and sign"
