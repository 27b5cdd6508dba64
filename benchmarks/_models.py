"""The networks of the benchmarks: a ResNet of usual size, and those with published robustness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import data_folder


class PreActBlock(nn.Module):
    """A pre-activation block (He et al., 2016, arXiv:1603.05027)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(n_in, n_out, 1, stride, bias=False) if stride > 1 or n_in != n_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + skip


def preact_resnet18() -> nn.Module:
    """Pre-activation ResNet-18 for 32x32 images, with random weights."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)]
    n_in = 64
    for n_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [PreActBlock(n_in, n_out, stride), PreActBlock(n_out, n_out, 1)]
        n_in = n_out
    head = [nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*blocks, *head, nn.Linear(512, 10)).eval()


class LeNet5(nn.Module):
    """The network of the ``advertorch`` files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class PlainBlock(nn.Module):
    """A residual block without batch normalisation, as in ``resnet2b``."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2b(nn.Module):
    """The network of ``resnet2b.pth``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(PlainBlock(8, 16, 2), PlainBlock(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer1(F.relu(self.conv1(x))).flatten(1)
        return self.linear2(F.relu(self.linear1(out)))


def small(channels: int, width: int) -> nn.Module:
    """The convolutional network of ``mnist_fgsm`` and of several published files."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width * width, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


_FILES = {
    "mnist_fgsm": ("fast_adversarial/mnist_fgsm.pth", lambda: small(1, 7)),
    "mnist_clean": ("advertorch/mnist_lenet5_clntrained.pt", LeNet5),
    "mnist_pgd": ("advertorch/mnist_lenet5_advtrained.pt", LeNet5),
}


def trained(name: str) -> nn.Module:
    """``mnist_fgsm``, ``mnist_clean`` (undefended) or ``mnist_pgd``, in evaluation mode."""
    file, build = _FILES[name]
    net = build()
    state = torch.load(data_folder() / "models" / file, map_location="cpu", weights_only=True)
    net.load_state_dict(state.get("state_dict", state))
    return net.eval()
