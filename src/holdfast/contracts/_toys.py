"""Small networks and inputs whose truth is known, made without global random numbers.

They compute in float64 and round once: how a batch is cut then changes no bit of their answers,
so that every difference that a contract sees is the attack's own.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from holdfast.engine.random import Rng

SHAPE = (8,)
RADII = {"linf": 0.1, "l2": 0.25, "l1": 0.5, "l0": 2.0}


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of this shape, float64."""
    return Rng.from_seed(seed).normal(shape, torch.float64)[0]


def inputs(seed: int, n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """``n`` inputs in [0, 1]; about every fifth coordinate lies on the box's border."""
    u = Rng.from_seed(seed).uniform((n, *shape))[0]
    return ((u - 0.1) / 0.8).clamp(0.0, 1.0)


@final
class Affine(nn.Module):
    """``logits = W (x - 1/2) + b`` on flattened inputs."""

    def __init__(self, n_inputs: int, n_classes: int, seed: int = 0) -> None:
        super().__init__()
        weight = 2.0 * normal(seed, n_inputs, n_classes) / math.sqrt(n_inputs)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(0.2 * normal(seed + 1, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, k)``."""
        return ((x.flatten(1).double() - 0.5) @ self.weight + self.bias).to(x.dtype)


@final
class Seesaw(nn.Module):
    """Five classes: 0 around the middle, 1 and 2 at opposite ends of one direction, 3 and 4 far."""

    def __init__(self, n_inputs: int, seed: int = 0) -> None:
        super().__init__()
        self.slope = nn.Parameter(3.0 * normal(seed, n_inputs) / math.sqrt(n_inputs))

    def rise(self, x: Tensor) -> Tensor:
        """How far towards class 1 the input lies ``(n,)``; class 2 is the other way."""
        return (x.flatten(1).double() - 0.5) @ self.slope

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, 5)``."""
        u = self.rise(x)
        middle = torch.full_like(u, 0.3)
        return torch.stack([middle, u, -u, middle - 3, middle - 3], 1).to(x.dtype)


@final
class Net(nn.Module):
    """One hidden layer of ReLUs on flattened inputs."""

    def __init__(
        self, n_inputs: int, n_classes: int, seed: int = 0, width: int = 16, gain: float = 3.0
    ) -> None:
        super().__init__()
        self.first = nn.Parameter(gain * normal(seed, n_inputs, width) / math.sqrt(n_inputs))
        self.shift = nn.Parameter(0.5 * normal(seed + 1, width))
        self.second = nn.Parameter(2.0 * normal(seed + 2, width, n_classes) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, k)``."""
        hidden = (x.flatten(1).double() - 0.5) @ self.first + self.shift
        return (hidden.relu() @ self.second).to(x.dtype)


@final
class Flat(nn.Module):
    """Logits that depend on the input, through gradients that are zero or NaN everywhere."""

    def __init__(self, gradient: float) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, 3)``."""
        value = (x.flatten(1) * 8).round().mean(1)  # rounding has a zero gradient
        value = _Poison.apply(x, value) if math.isnan(self.gradient) else value
        return torch.stack([value, 1.0 - value, 0.5 * value], 1)


class _Poison(torch.autograd.Function):
    """Hands on a value, and NaN as the gradient of the input."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape = x.shape  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.full(ctx.shape, torch.nan, dtype=grad.dtype), grad  # type: ignore[attr-defined]


@final
class Modes(nn.Module):
    """Everything an audit could disturb: batch norm, dropout, frozen parts, buffers, gradients."""

    def __init__(self, n_inputs: int, n_classes: int, crash_after: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(n_inputs, 8)
            self.norm = nn.BatchNorm1d(8)
            self.drop = nn.Dropout(0.5)
            self.last = nn.Linear(8, n_classes)
        self.first.requires_grad_(False)
        self.train()
        self.norm.eval()  # a frozen layer inside a network in training mode
        self.last.weight.grad = torch.ones_like(self.last.weight)
        self.crash_after, self.n_calls = crash_after, 0

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, k)``; raises after ``crash_after`` calls."""
        self.n_calls += 1
        if self.crash_after is not None and self.n_calls > self.crash_after:
            raise RuntimeError("the model breaks down")
        hidden = self.drop(self.norm(self.first(x.flatten(1))))
        return self.last(hidden.relu())
