"""The models that the cascades are measured on, and which of them were used for choosing.

Every constant of the cascades was chosen on the models of :data:`CHOSEN_ON` alone; the others only
check that what was chosen holds elsewhere. The last two of them came to the
first three after earlier versions of ``quick`` had missed samples on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import ROOT, data_folder, images
from _models import LeNet5, ResNet2b, small

CHOSEN_ON = (
    "mnist_fgsm",
    "mnist_clean",
    "cifar_cnn_a_mix",
    "fashion_transformer_trades",
    "fashion_residual_pgd",
)
OWN = ROOT / "build" / "models"
"""Where ``train_models.py`` puts the networks that no one publishes."""


class Normalised(nn.Module):
    """A network whose inputs are brought to mean 0 and deviation 1 per channel first."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return self.net((x - mean) / std)


class Attention(nn.Module):
    """One layer of a transformer: attention, then two linear layers, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        weights = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A small vision transformer for 28x28 images: 16 patches, four layers."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(torch.zeros(1, 16, width))
        self.layers = nn.Sequential(*(Attention(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(tokens)).mean(1))


class BatchNormBlock(nn.Module):
    """A residual block with batch normalisation."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def residual(channels: int, width: int = 12) -> nn.Module:
    """A residual network with batch normalisation for small images."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1),
        nn.ReLU(),
        BatchNormBlock(width, width, 1),
        BatchNormBlock(width, 2 * width, 2),
        BatchNormBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def _cifar_base() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


@dataclass(frozen=True)
class Case:
    """A network, the images and the threat that it is measured under.

    Attributes:
        kind: What kind of network it is and how it was trained.
        data: ``mnist``, ``fashion_mnist`` or ``cifar10``.
        threat: As text.
        build: Makes the network without its weights.
        file: Its weights, in the data folder's ``models``; empty: trained by ``train_models.py``.
        mean, std: Normalisation inside the model.
    """

    kind: str
    data: str
    threat: str
    build: Callable[[], nn.Module]
    file: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def norm(self) -> str:
        """Of the threat."""
        return self.threat.partition(":")[0]

    @property
    def eps(self) -> float:
        """Radius of the threat."""
        top, _, bottom = self.threat.partition(":")[2].partition("/")
        return float(top) / float(bottom or 1)


_CNN_A = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
_RESNET = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_BASE = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))

CASES: dict[str, Case] = {
    "mnist_fgsm": Case(
        "convolutional, trained with FGSM: gradients partly masked",
        "mnist",
        "linf:0.3",
        lambda: small(1, 7),
        "fast_adversarial/mnist_fgsm.pth",
    ),
    "mnist_clean": Case(
        "convolutional, undefended",
        "mnist",
        "linf:0.3",
        LeNet5,
        "advertorch/mnist_lenet5_clntrained.pt",
    ),
    "mnist_pgd": Case(
        "convolutional, trained with PGD",
        "mnist",
        "linf:0.3",
        LeNet5,
        "advertorch/mnist_lenet5_advtrained.pt",
    ),
    "mnist_convex": Case(
        "convolutional, provably robust training",
        "mnist",
        "linf:0.1",
        lambda: small(1, 7),
        "convex_adversarial/mnist.pth",
    ),
    "cifar_cnn_a_mix": Case(
        "convolutional, mixed training",
        "cifar10",
        "linf:2/255",
        lambda: small(3, 8),
        "abcrown/cifar_cnn_a_mix.model",
        *_CNN_A,
    ),
    "cifar_resnet2b": Case(
        "residual without normalisation, trained with PGD",
        "cifar10",
        "linf:2/255",
        ResNet2b,
        "abcrown/resnet2b.pth",
        *_RESNET,
    ),
    "cifar_base": Case(
        "convolutional, provably robust training",
        "cifar10",
        "linf:2/255",
        _cifar_base,
        "abcrown/cifar_base.pth",
        *_BASE,
    ),
    "fashion_residual_pgd": Case(
        "residual with batch normalisation, trained with PGD",
        "fashion_mnist",
        "linf:0.1",
        lambda: residual(1),
    ),
    "fashion_transformer_trades": Case(
        "vision transformer, trained with TRADES", "fashion_mnist", "linf:0.1", Transformer
    ),
    "fashion_transformer": Case(
        "vision transformer, undefended", "fashion_mnist", "linf:0.1", Transformer
    ),
    "cifar_residual_pgd": Case(
        "residual with batch normalisation, trained with PGD",
        "cifar10",
        "linf:4/255",
        lambda: residual(3),
    ),
    "fashion_residual_pgd_l2": Case(
        "residual, trained with PGD in l2", "fashion_mnist", "l2:1.0", lambda: residual(1)
    ),
}


def network(name: str) -> nn.Module:
    """The network of a case, in evaluation mode, inputs in [0, 1]."""
    case = CASES[name]
    net = case.build()
    path = data_folder() / "models" / case.file if case.file else OWN / f"{name}.pt"
    if not path.is_file():
        raise SystemExit(f"No weights at {path}. Make them with: python benchmarks/train_models.py")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    if case.mean:
        net = Normalised(net, case.mean, case.std)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval()


def samples(name: str, n: int) -> tuple[Tensor, Tensor]:
    """The first ``n`` test images of a case, in [0, 1], and their labels."""
    case = CASES[name]
    return (
        cifar("cifar10_test_300_lossless.npz", n)
        if case.data == "cifar10"
        else images(case.data, n)
    )


def cifar(file: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Images of a file of the ``cifar10`` folder, channels first."""
    content = np.load(data_folder() / "cifar10" / file)
    x = torch.from_numpy(content["x"][:n]).float().div(255)
    return (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous()), torch.from_numpy(
        content["y"][:n]
    ).long()
