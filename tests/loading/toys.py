"""Small things to load: imported by name, as a user's own code is."""

import torch
from torch import nn


def net(width: int = 4, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, width), nn.Tanh(), nn.Linear(width, classes)
        )


def needs_width(width: int) -> nn.Module:
    return net(width)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x)


instance = net()
number = 3


def scores(x):
    return x.flatten(1)[:, :3]


def labels(x):
    return (x.flatten(1).sum(1) > 6).long()


def broken() -> nn.Module:
    raise RuntimeError("no weights on this machine")


def not_a_model() -> int:
    return 7


class Estimator:
    """What scikit-learn's classifiers look like."""

    def predict_proba(self, x):
        assert x.ndim == 2
        p = x[:, :2] / x[:, :2].sum(1, keepdims=True)
        return p
