"""Random small networks with random inputs: perceptrons, convolutional, residual, attention."""

from __future__ import annotations

import itertools
import random

import torch
from torch import Tensor, nn

KINDS = ("mlp", "cnn", "residual", "attention")
ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU)


class Residual(nn.Module):
    """``act(z + f(z))``, or ``f(z)`` beside a projection where shapes differ."""

    def __init__(self, inner: nn.Module, skip: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.inner, self.skip, self.act = inner, skip, act

    def forward(self, z: Tensor) -> Tensor:
        return self.act(self.inner(z) + self.skip(z))


class Attention(nn.Module):
    """One attention layer with a few heads over a sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, z: Tensor) -> Tensor:
        n, t, d = z.shape
        q, k, v = (
            p.reshape(n, t, self.heads, d // self.heads).transpose(1, 2)
            for p in self.qkv(z).chunk(3, -1)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5, -1)
        return z + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))


class Mean(nn.Module):
    """Average over the sequence."""

    def forward(self, z: Tensor) -> Tensor:
        return z.mean(1)


def random_network(seed: int) -> tuple[str, nn.Module, Tensor]:
    """Kind, network in evaluation mode, and 1 to 64 inputs in [0, 1], all from the seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    build = {"mlp": _mlp, "cnn": _cnn, "residual": _residual, "attention": _attention}
    net, shape = build[kind](rng)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_()
            assert part.running_var is not None
            part.running_var.uniform_(0.5, 2)
    return (
        kind,
        net.eval().requires_grad_(False),
        torch.rand(rng.choice((1, 2, 3, 7, 16, 64)), *shape),
    )


def _mlp(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    sizes = [
        rng.randint(1, 9),
        *(rng.randint(1, 12) for _ in range(rng.randint(1, 4))),
        rng.randint(1, 5),
    ]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=rng.random() < 0.8), rng.choice(ACTIVATIONS)()]
    return nn.Sequential(*layers[:-1]), (sizes[0],)


def _conv(rng: random.Random, n_in: int, n_out: int, stride: int) -> nn.Conv2d:
    kernel = rng.choice((1, 2, 3))
    return nn.Conv2d(
        n_in, n_out, kernel, stride, rng.randint(0, kernel // 2), bias=rng.random() < 0.8
    )


def _cnn(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (rng.randint(1, 3), rng.randint(5, 9), rng.randint(5, 9))
    channels, layers = [shape[0]], list[nn.Module]()
    for _ in range(rng.randint(1, 3)):
        channels.append(rng.randint(1, 4))
        layers.append(_conv(rng, channels[-2], channels[-1], rng.choice((1, 1, 2))))
        if rng.random() < 0.4:
            layers.append(nn.BatchNorm2d(channels[-1]))
        layers.append(rng.choice(ACTIVATIONS)())
    if rng.random() < 0.5:
        layers.append(rng.choice((nn.MaxPool2d, nn.AvgPool2d))(2, 1, rng.choice((0, 1))))
    body = nn.Sequential(*layers, nn.Flatten()).eval()
    size = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(body, nn.Linear(size, rng.randint(2, 4))), shape


def _residual(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    size, width = rng.randint(4, 8), rng.randint(2, 4)
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3, 1, 1), nn.ReLU()]
    for _ in range(rng.randint(1, 2)):
        stride = rng.choice((1, 2))
        out = width if stride == 1 else width + 1
        inner = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1),
            rng.choice(ACTIVATIONS)(),
            nn.Conv2d(out, out, 3, 1, 1),
        )
        skip = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)
        layers.append(Residual(inner, skip, rng.choice(ACTIVATIONS)()))
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)), (
        2,
        size,
        size,
    )


def _attention(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    heads = rng.randint(1, 2)
    width, length = heads * rng.randint(1, 3), rng.randint(2, 4)
    layers: list[nn.Module] = [nn.Linear(3, width), Attention(width, heads)]
    if rng.random() < 0.4 and width > 1:
        layers.append(nn.LayerNorm(width))
    layers += [nn.Linear(width, 4), rng.choice(ACTIVATIONS)(), nn.Linear(4, width)]
    return nn.Sequential(*layers, Mean(), nn.Linear(width, 3)), (length, 3)
