"""A small network that learns the model's answers, to take gradients from.

Papernot et al. (2017, arXiv:1602.02697), Practical black-box attacks against machine learning: ask
the model about the samples, train a substitute on its answers, move the samples to where the
substitute changes most, and ask again. What fools the substitute often fools the model: gradients
are missing or misleading in the model only.

Differences: answers are whole distributions, softened to one size, and the samples move within the
allowed changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.engine.random import Rng
from holdfast.model import Model
from holdfast.threat import AllowedSet

_ROUNDS = 4  # of asking and training
_STEPS = 120  # of training per round
_BATCH = 64
_RATE = 2e-3
_SHARPNESS = 3.0  # of the softened answers, in standard deviations of the logits


def network(shape: Sequence[int], n_classes: int) -> nn.Module:
    """A small network for inputs of this shape: convolutional for images, else two layers."""
    if len(shape) != 3 or min(shape[1:]) < 4:
        size = int(torch.Size(shape).numel())
        layers = [nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, n_classes))
    channels, height, width = shape
    area = -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * area, 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def distil(model: Model, allowed: AllowedSet, rng: Rng, seed: int) -> nn.Module:
    """A network trained on the model's answers to clean inputs ``allowed.x`` and to changed ones.

    Costs one forward pass per sample and round. Torch's own random state is not touched.
    """
    x = allowed.x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(tuple(x.shape[1:]), model.n_classes).to(x.device)
    generator = torch.Generator().manual_seed(seed)
    points = [x]
    answers = [_softened(model, x)]
    with torch.enable_grad():
        for number in range(_ROUNDS):
            _train(net, torch.cat(points), torch.cat(answers), generator)
            if number + 1 < _ROUNDS:
                points.append(_moved(net, allowed, answers[0], rng.fold(number)))
                answers.append(_softened(model, points[-1]))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval()


def _softened(model: Model, x: Tensor) -> Tensor:
    logits = model.logits(x)
    size = logits.std(1, keepdim=True).clamp_min(1e-12)
    return (_SHARPNESS * logits / size).softmax(1)


def _train(net: nn.Module, x: Tensor, answers: Tensor, generator: torch.Generator) -> None:
    net.train()
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    for _ in range(_STEPS):
        rows = torch.randint(len(x), (_BATCH,), generator=generator).to(x.device)
        loss = F.cross_entropy(net(x[rows]), answers[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _moved(net: nn.Module, allowed: AllowedSet, answers: Tensor, rng: Rng) -> Tensor:
    """Random allowed points, moved to where the substitute's loss grows."""
    z = allowed.sample(rng).detach().requires_grad_(True)
    loss = F.cross_entropy(net(z), answers.argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z)
    step = allowed.natural_step(4).reshape(-1, *(1,) * (z.ndim - 1))
    return allowed.project(z.detach() + step * allowed.direction(gradient))


def save(net: nn.Module, path: Path, shape: Sequence[int], n_classes: int) -> None:
    """Write the weights."""
    about = {"shape": ",".join(map(str, shape)), "n_classes": str(n_classes)}
    save_file(net.state_dict(), path, about)


def load(path: Path) -> nn.Module:
    """What :func:`save` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    shape = [int(n) for n in about["shape"].split(",")]
    net = network(shape, int(about["n_classes"]))
    net.load_state_dict(load_file(path))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval()
