"""A small network on small images: a training takes a second."""

from pathlib import Path

import torch
from torch import nn

from holdfast.attacks.pgd import PGD
from holdfast.data import ArrayData
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.hardening.asking import Ask, make_fabric, prepare
from holdfast.hardening.loop import Loop
from holdfast.hardening.settings import Settings
from holdfast.hardening.trainer import Setup
from holdfast.modalities import load
from holdfast.model import Model
from holdfast.threat import parse_threat

THREAT = "linf:0.1"
CPU = torch.device("cpu")


def digits(n: int | None = None, part: str = "train") -> ArrayData:
    data = load(f"digits:{part}")
    return ArrayData(*data.fetch(range(n or len(data))))


def mlp(seed: int = 0, width: int = 32, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(width)] if norm else []
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), *middle, nn.ReLU(), nn.Linear(width, 10)
        )


def fitted(epochs: int = 15) -> nn.Sequential:
    """Trained without any attack."""
    net, data = mlp(), digits()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(epochs):
        for rows in torch.arange(len(data)).split(128):
            x, y = data.fetch(rows.tolist())
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    optimiser.zero_grad()
    return net.eval()


def ask(net: nn.Module, n: int = 400, **options) -> Ask:
    options = {"epochs": 1.0, "audit": False} | options
    if "seconds" in options:
        options["epochs"] = None
    threats = options.pop("threats", (THREAT,))
    return Ask(Model(net), digits(n), tuple(map(parse_threat, threats)), **options)


def settings(**options) -> Settings:
    return Settings(
        **{
            "n_updates": 30,
            "batch_size": 32,
            "optimiser": "adam",
            "learning_rate": 3e-3,
            "weight_decay": 0.0,
            "updates_per_round": 10,
            "updates_per_check": 5,
            "n_validation": 40,
            "validation_steps": 3,
        }
        | options
    )


def loop(
    net: nn.Module, directory: Path | None = None, recipe=None, n: int = 400, **options
) -> Loop:
    asked = ask(net, n)
    ready = prepare(asked, CPU)
    recipe = recipe or PGDTraining(PGD(steps=2))
    fabric = make_fabric(CPU, "32-true")
    setup = Setup(ready.model, ready.samples, asked.threats, recipe, settings(**options), fabric)
    return Loop(setup, directory)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [t.detach().clone() for t in net.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
