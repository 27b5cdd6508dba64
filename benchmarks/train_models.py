"""Train the small networks that ``strength.py`` needs beside the published ones.

Fixed seeds, minutes on one core; the weights go to ``build/models``. Only what is missing is made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import data_folder
from _validation import CASES, OWN, cifar

Crafted = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        loss: ``natural``, ``pgd`` or ``trades``.
        n_train: Images.
        epochs: Times that each is seen.
        lr: Largest learning rate.
        steps: Of the inner attack.
    """

    loss: str
    n_train: int
    epochs: int
    lr: float = 2e-3
    steps: int = 5


RECIPES: dict[str, Recipe] = {
    "fashion_transformer": Recipe("natural", 20_000, 6),
    "fashion_transformer_trades": Recipe("trades", 10_000, 4, steps=4),
    "fashion_residual_pgd": Recipe("pgd", 20_000, 5, lr=5e-3),
    "fashion_residual_pgd_l2": Recipe("pgd", 8_000, 5, lr=5e-3, steps=4),
    "cifar_residual_pgd": Recipe("pgd", 4_000, 12, lr=5e-3, steps=4),
}


def images(name: str, n: int) -> Crafted:
    """The first ``n`` training images of a case."""
    case = CASES[name]
    if case.data == "cifar10":
        return cifar("cifar10_train_first4000_lossless.npz", n)
    from holdfast.modalities import load

    data = load(str(data_folder() / case.data / "train-images-idx3-ubyte.gz"))
    return data.fetch(range(n))


def crafted(
    net: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor], name: str, steps: int
) -> Tensor:
    """Plain PGD from a random start: the inner attack of training."""
    case = CASES[name]
    is_l2 = case.norm == "l2"
    delta = torch.randn_like(x) if is_l2 else torch.empty_like(x).uniform_(-case.eps, case.eps)
    delta = _inside(x, delta, case.eps, is_l2)
    for _ in range(steps):
        z = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(objective(net(z)), z)
        if is_l2:
            g = g / g.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        delta = _inside(
            x, delta + 2.5 / steps * case.eps * (g if is_l2 else g.sign()), case.eps, is_l2
        )
    return (x + delta).detach()


def _inside(x: Tensor, delta: Tensor, eps: float, is_l2: bool) -> Tensor:
    if is_l2:
        size = delta.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        delta = delta * (eps / size).clamp_max(1.0)
    else:
        delta = delta.clamp(-eps, eps)
    return (x + delta).clamp(0, 1) - x


def loss_of(net: nn.Module, x: Tensor, y: Tensor, name: str) -> Tensor:
    """The training loss of one batch."""
    recipe = RECIPES[name]
    if recipe.loss == "natural":
        return F.cross_entropy(net(x), y)
    if recipe.loss == "pgd":
        z = crafted(
            net, x, lambda out: F.cross_entropy(out, y, reduction="sum"), name, recipe.steps
        )
        return F.cross_entropy(net(z), y)
    clean = net(x).log_softmax(1).detach()
    kl = lambda out: F.kl_div(out.log_softmax(1), clean, reduction="sum", log_target=True)  # noqa: E731
    z = crafted(net, x, kl, name, recipe.steps)
    out = net(x)
    distance = F.kl_div(net(z).log_softmax(1), out.softmax(1), reduction="batchmean")
    return F.cross_entropy(out, y) + 6.0 * distance


def train(name: str) -> None:
    """Train one network and write its weights."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    net = CASES[name].build()
    x, y = images(name, recipe.n_train)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    n_batches = recipe.epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, n_batches)
    began = time.monotonic()
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(100)[: len(x) // 100]:
            net.train()
            loss = loss_of(net, x[rows], y[rows], name)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean, spent = 100 * total / len(x), time.monotonic() - began
        print(f"{name} epoch {epoch}: loss {mean:.3f}, {spent:.0f} s", flush=True)
    OWN.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), OWN / f"{name}.pt")


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES), help="which networks")
    for name in parser.parse_args().names:
        if not (OWN / f"{name}.pt").is_file():
            train(name)


if __name__ == "__main__":
    main()
