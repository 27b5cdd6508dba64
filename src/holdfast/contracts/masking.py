"""Planted defences: networks that are no more robust, but whose gradients mislead attackers.

What a check of :mod:`holdfast.trust` must see through. Each wraps a network, or trains one, so that
usual gradient attacks fail; what these leave is little more, or even less, robust than the network
inside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuantisedInput(nn.Module):
    """Inputs rounded to few levels (Guo et al., 2018, arXiv:1711.00117): zero gradients."""

    def __init__(self, net: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.net, self.levels = net, levels - 1

    def forward(self, x: Tensor) -> Tensor:
        """Round, then the network."""
        return self.net(torch.round(x * self.levels) / self.levels)


class StepInput(nn.Module):
    """Inputs as counts of thresholds passed (Buckman et al., 2018: thermometers)."""

    steps: Tensor

    def __init__(self, net: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("steps", (torch.arange(levels - 1) + 0.5) / (levels - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Count, then the network."""
        passed = (x.unsqueeze(-1) > self.steps).float()
        return self.net(passed.mean(-1))


class RippledInput(nn.Module):
    """A fast, small wave on the inputs: gradients of random sign, and no operator to blame."""

    def __init__(self, net: nn.Module, size: float = 0.01, waves: float = 500.0) -> None:
        super().__init__()
        self.net, self.size, self.waves = net, size, waves

    def forward(self, x: Tensor) -> Tensor:
        """Ripple, then the network."""
        return self.net(x + self.size * torch.sin(self.waves * x))


class DitheredInput(nn.Module):
    """Few levels, rounded up or down at random: zero gradients and random answers at once."""

    def __init__(self, net: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.net, self.levels = net, levels - 1

    def forward(self, x: Tensor) -> Tensor:
        """Dither, then the network."""
        return self.net(torch.floor(x * self.levels + torch.rand_like(x)) / self.levels)


class CompressedInput(nn.Module):
    """Rounded cosine coefficients of blocks, as in JPEG (Guo et al., 2018, arXiv:1711.00117)."""

    basis: Tensor

    def __init__(self, net: nn.Module, step: float = 0.2, block: int = 7) -> None:
        super().__init__()
        self.net, self.step, self.block = net, step, block
        place = torch.arange(block, dtype=torch.float64)
        basis = torch.cos(torch.pi / block * (place + 0.5) * place[:, None]) * (2 / block) ** 0.5
        basis[0] /= 2**0.5
        self.register_buffer("basis", basis.float())

    def forward(self, x: Tensor) -> Tensor:
        """Compress, then the network."""
        n, channels, height, width = x.shape
        size = (n, channels, height // self.block, self.block, width // self.block, self.block)
        blocks = x.reshape(size).transpose(3, 4)
        coefficients = self.basis @ blocks @ self.basis.T
        rounded = torch.round(coefficients / self.step) * self.step
        restored = self.basis.T @ rounded @ self.basis
        return self.net(restored.transpose(3, 4).reshape(x.shape).clamp(0, 1))


class RandomResizing(nn.Module):
    """Resize by a random factor and pad at random (Xie et al., 2018, arXiv:1711.01991)."""

    def __init__(self, net: nn.Module, smallest: float = 0.8) -> None:
        super().__init__()
        self.net, self.smallest = net, smallest

    def forward(self, x: Tensor) -> Tensor:
        """One random factor and place per input, then the network."""
        n = len(x)
        factor = self.smallest + (1 - self.smallest) * torch.rand(n, device=x.device)
        place = (1 - factor)[:, None] * (2 * torch.rand(n, 2, device=x.device) - 1)
        theta = torch.zeros(n, 2, 3, device=x.device, dtype=x.dtype)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
        theta[:, :, 2] = place / factor[:, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.net(F.grid_sample(x, grid, align_corners=False))


class MeanSparse(nn.Module):
    """Values near their channel's mean become the mean (Amini et al., 2024, arXiv:2406.05927)."""

    mean: Tensor
    width: Tensor

    def __init__(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("width", alpha * std)

    def forward(self, x: Tensor) -> Tensor:
        """Sparsify."""
        mean = self.mean.expand_as(x)
        return torch.where((x - mean).abs() <= self.width, mean, x)


def sparsified(net: nn.Sequential, x: Tensor, alpha: float = 0.3) -> nn.Sequential:
    """``net`` with a :class:`MeanSparse` before every ReLU; statistics of ``x``."""
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.ReLU):
            with torch.no_grad():
                out = nn.Sequential(*layers)(x)
            dims = [0, *range(2, out.ndim)]
            mean, std = out.mean(dims, keepdim=True)[0], out.std(dims, keepdim=True)[0]
            layers.append(MeanSparse(mean, std, alpha))
        layers.append(layer)
    return nn.Sequential(*layers).eval()


class WinnersTakeAll(nn.Module):
    """Only the largest of each sample's values pass (Xiao et al., 2020, arXiv:1905.10510)."""

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Keep the winners."""
        flat = x.flatten(1)
        k = max(1, int(self.share * flat.shape[1]))
        edge = flat.topk(k, dim=1).values[:, -1:]
        return (flat * (flat >= edge).float()).reshape(x.shape)


class InnerSolver(nn.Module):
    """A denoiser that descends an energy inside the forward pass, without a graph to the input."""

    def __init__(self, net: nn.Module, steps: int = 8, rate: float = 0.1) -> None:
        super().__init__()
        self.net, self.steps, self.rate = net, steps, rate

    def forward(self, x: Tensor) -> Tensor:
        """Descend, then the network."""
        z = x.detach().clone()
        for _ in range(self.steps):
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                rough = z.diff(dim=-1).square().sum() + z.diff(dim=-2).square().sum()
                energy = 0.1 * rough + (z - x.detach()).square().sum()
                (gradient,) = torch.autograd.grad(energy, z)
            z = z - self.rate * gradient
        return self.net(z.detach())


def distilled(
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    temperature: float = 100.0,
    epochs: int = 12,
) -> nn.Module:
    """Defensive distillation (Papernot et al., 2016, arXiv:1511.04508): a saturated softmax.

    Teacher and student learn at ``temperature`` and answer at 1, so that logits are as many times
    larger.
    """
    n_classes = int(y.max()) + 1
    targets = F.one_hot(y, n_classes).float()
    teacher = _Scaled(make(), temperature)
    fit(teacher, x, targets, temperature, epochs)
    with torch.no_grad():
        targets = (teacher(x) / temperature).softmax(1)
    student = _Scaled(make(), temperature)
    fit(student, x, targets, temperature, epochs)
    return student


class _Scaled(nn.Module):
    """Logits of the usual size at the temperature of training."""

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * self.net(x)


def fit(
    net: nn.Module, x: Tensor, targets: Tensor, temperature: float = 1.0, epochs: int = 12
) -> None:
    """Train on ``targets`` ``(n, k)``, distributions over classes, at a temperature."""
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            loss = F.cross_entropy(net(x[rows]) / temperature, targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    net.eval()
