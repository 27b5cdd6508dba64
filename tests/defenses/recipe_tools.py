"""A small network, a batch and a step: what tests of recipes need."""

from dataclasses import replace

import torch
from torch import nn

from holdfast.hardening.step import own_batch, own_step
from holdfast.threat import parse_threat


def network(seed=0, *, batch_norm=True):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(4)] if batch_norm else []
    layers = [nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def batch_of(n=8, seed=0):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return own_batch(x, torch.arange(n) % 3)


def step_for(*threats, net=None, **changes):
    threats = threats or ("linf:0.1",)
    step = own_step(network() if net is None else net, threats[0])
    step.network.train()
    return replace(step, threats=tuple(parse_threat(t) for t in threats), **changes)
