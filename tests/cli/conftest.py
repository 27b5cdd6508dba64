"""A directory with a user's code and data, which is the current one."""

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

CODE = """
import torch
from torch import nn

calls = 0
stop_after = None
raises = KeyboardInterrupt


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(12, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(3, 12, generator=generator))
            self.linear.bias.zero_()

    def forward(self, x):
        global calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise raises("stopped by the test")
        return self.linear(x.flatten(1))


def chatty():
    print("building the network")
    return Net()


def image_net():
    return Net()
"""

CASCADE = """
[[stage]]
attack = "apgd"
loss = "ce"
steps = 8

[[stage]]
attack = "pgd"
steps = 8
restarts = 2
"""


def samples(n=24, shape=(3, 2, 2)):
    """Inputs, and the labels that the network gives most of them."""
    import torch

    x = np.random.default_rng(1).random((n, *shape)).astype(np.float32)
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    y = (torch.from_numpy(x).flatten(1) @ weight.T).argmax(1).numpy()
    y[0] = (y[0] + 1) % 3
    return x, y


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "cli_zoo.py").write_text(CODE)
    (tmp_path / "short.toml").write_text(CASCADE)
    x, y = samples()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    yield tmp_path
    sys.modules.pop("cli_zoo", None)


@pytest.fixture
def cli(home):
    """Run the command line in this process: ``cli("audit", ...)``."""
    from holdfast.cli import app

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run


@pytest.fixture
def audit(cli):
    """``holdfast audit`` of the small network, with more options or other values."""

    def run(*more, model="cli_zoo:Net", data="data.npz", threat="linf:0.1"):
        words = ["audit", model, "--data", data, "--threat", threat, "--cascade", "short.toml"]
        return cli(*words, *more)

    return run
