"""The six networks whose bounds are compared, each with images, boxes and margins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _common import data_folder, images
from _models import ResNet2b, small


@dataclass(frozen=True)
class Case:
    """A network with inputs as it takes them (normalised already) and their boxes.

    Attributes:
        C: Rows of all margins ``(n, k - 1, k)``.
    """

    name: str
    net: nn.Module
    x: Tensor
    lower: Tensor
    upper: Tensor
    C: Tensor


class Attention(nn.Module):
    """One attention block over 16 patches of a small image."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.down, self.head = nn.Linear(2 * width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        scores = self.q(z) @ self.k(z).transpose(-1, -2) / 12**0.5
        z = z + self.out(torch.softmax(scores, -1) @ self.v(z))
        z = z + self.down(torch.relu(self.up(z)))
        return self.head(z.mean(1))


def _case(name: str, net: nn.Module, x: Tensor, y: Tensor, eps: float, norms: tuple = ()) -> Case:
    from holdfast.verifiers.bounds import margins

    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    if norms:
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in norms)
        x, lower, upper = ((t - mean) / std for t in (x, lower, upper))
    net.eval().requires_grad_(False)
    return Case(name, net, x, lower, upper, margins(y, 10))


def _load(net: nn.Module, file: str) -> nn.Module:
    state = torch.load(data_folder() / "models" / file, map_location="cpu", weights_only=False)
    state = state.get("state_dict", state)
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    return net


def _cifar(n: int) -> tuple[Tensor, Tensor]:
    file = np.load(data_folder() / "cifar10" / "cifar10_test_300_lossless.npz")
    x, y = (file[k] for k in sorted(file.files, key=lambda k: file[k].ndim, reverse=True)[:2])
    x = torch.from_numpy(x[:n])
    x = x.movedim(-1, 1) if x.shape[-1] == 3 else x
    return x.float() / 255, torch.from_numpy(y[:n].astype(np.int64))


def _mlp(n: int) -> Case:
    """The weights of an ONNX file as a module."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(data_folder() / "vnn" / "mnist_fc" / "onnx" / "mnist-net_256x4.onnx")
    stored = [torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer]
    weights = [w if w.shape[1] in (784, 256) else w.T for w in stored if w.dim() == 2]
    biases = [b.flatten() for b in stored if b.dim() == 1]
    layers: list[nn.Module] = [nn.Flatten()]
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.contiguous(), bias
        layers += [layer, nn.ReLU()]
    return _case("mnist_fc_256x4", nn.Sequential(*layers[:-1]), *images("mnist", n), 0.02)


def _attention(n: int) -> Case:
    torch.manual_seed(7)
    x, y = images("mnist", n)
    patches = F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 2)
    patches = F.unfold(patches, 4, stride=4).transpose(1, 2).contiguous()
    return _case("attention", Attention(), patches, y, 0.005)


_A_MIX = ((125.3 / 255, 123 / 255, 113.9 / 255), (63 / 255, 62.1 / 255, 66.7 / 255))
_RESNET = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_BASE = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))


def _cifar_base() -> nn.Module:
    convs = [nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10))


NETWORKS: dict[str, Callable[[int], Case]] = {
    "mnist_small": lambda n: _case(
        "mnist_small", _load(small(1, 7), "convex_adversarial/mnist.pth"), *images("mnist", n), 0.1
    ),
    "cifar_cnn_a_mix": lambda n: _case(
        "cifar_cnn_a_mix",
        _load(small(3, 8), "abcrown/cifar_cnn_a_mix.model"),
        *_cifar(n),
        2 / 255,
        _A_MIX,
    ),
    "resnet2b": lambda n: _case(
        "resnet2b", _load(ResNet2b(), "abcrown/resnet2b.pth"), *_cifar(n), 2 / 255, _RESNET
    ),
    "cifar_base": lambda n: _case(
        "cifar_base", _load(_cifar_base(), "abcrown/cifar_base.pth"), *_cifar(n), 2 / 255, _BASE
    ),
    "mnist_fc_256x4": _mlp,
    "attention": _attention,
}
