"""Models behind torch.compile are audited and proven like any other."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import holdfast


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture
def data(net):
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, net(x).argmax(1)


def refused(*_args, **_options):
    raise AssertionError("compiled code ran")


def in_place(net):
    net.compile(backend=refused)
    return net


def as_part(net):
    return nn.Sequential(torch.compile(net[:2], backend=refused), net[2])


@pytest.mark.parametrize(
    "wrap", [lambda net: torch.compile(net, backend=refused), in_place, as_part]
)
def test_a_compiled_model_gives_the_audit_of_its_module(net, data, wrap):
    plain = holdfast.audit(net, data, "linf:0.1", cascade="standard", verify="fast")
    compiled = holdfast.audit(wrap(net), data, "linf:0.1", cascade="standard", verify="fast")
    assert compiled.verdicts == plain.verdicts
    assert compiled.verified_accuracy == plain.verified_accuracy
    assert 0 < plain.robust_accuracy.k < 20


def test_it_is_compiled_again_afterwards(net, data):
    ran = []

    def noting(graph, _inputs):
        ran.append(True)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=noting)
    holdfast.audit(compiled, data, "linf:0.1", cascade="quick")
    assert not ran
    compiled(data[0])
    assert ran


def test_where_nothing_is_compiled_the_compiler_is_not_even_loaded():
    """Loading it takes a second, in every process of an audit."""
    code = """
import sys, torch, holdfast
net, x = torch.nn.Linear(6, 3), torch.rand(4, 6)
holdfast.audit(net, (x, net(x).argmax(1)), "linf:0.1", cascade="quick", verify="off")
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
