"""Models behind torch.compile are audited and proven like any other."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks.base import Query
from holdfast.contracts.masking import QuantisedInput
from holdfast.errors import PlanError
from holdfast.model import Model, Tuning


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


class Liar(nn.Module):
    """Answers otherwise where it is compiled."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return z.roll(1, 1) if torch.compiler.is_compiling() else z


@pytest.fixture
def traced(monkeypatch):
    """Code is traced and differentiated as for a compiler, and runs without one."""
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, backend="aot_eager", **o))
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced")
def test_a_search_in_compiled_code_gives_the_same_verdicts(net, data):
    options = {"cascade": "standard", "verify": "off"}
    plain = holdfast.audit(net, data, "linf:0.1", **options)
    quick = holdfast.audit(net, data, "linf:0.1", compiled=True, **options)
    assert quick.verdicts == plain.verdicts
    assert 0 < plain.robust_accuracy.k < 20


@pytest.mark.usefixtures("traced")
def test_what_fools_compiled_code_only_never_counts(net, data):
    model = Model(Liar(net))
    model.tuning = Tuning(is_compiled=True)
    with model.session():
        model.recognise(data[0][:4])
        assert not torch.equal(model.search([Query(data[0])])[0].logits, model.logits(data[0]))
    report = holdfast.audit(Liar(net), data, "linf:1e-6", compiled=True, verify="off")
    assert report.clean_accuracy.value == report.robust_accuracy.value == 1.0


class Shy(nn.Module):
    """Wrong by a millionth at most, and where it is compiled never."""

    def forward(self, x):
        most = ((x[:, 0] - 0.5).clamp(-0.1, 0.1) * 20 - 1) * 1e-6
        own = torch.ones_like(most)
        return torch.stack([own + 2e-6 * torch.compiler.is_compiling(), own + most], 1)


@pytest.mark.usefixtures("traced")
def test_what_compiled_code_rounds_away_is_found():
    data = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    report = holdfast.audit(Shy(), data, "linf:0.2", compiled=True, verify="off", trust="off")
    assert report.clean_accuracy.value == 1.0
    assert report.robust_accuracy.value == 0.0


@pytest.mark.usefixtures("traced")
def test_a_route_sees_the_operators_of_the_model_itself(net, data):
    x, y = data
    rounding = QuantisedInput(nn.Sequential(nn.Flatten(), net), levels=4)
    found = [
        holdfast.audit(rounding, (x, y), "linf:0.3", compiled=compiled, verify="off")
        for compiled in (False, True)
    ]
    assert found[0].robust_accuracy.k == found[1].robust_accuracy.k
    assert found[0].threats["linf:0.3"].trust == found[1].threats["linf:0.3"].trust


def test_compiled_code_stays_in_its_process(net):
    model = Model(net)
    model._compiled = refused
    assert pickle.loads(pickle.dumps(model))._compiled is None


def test_what_cannot_be_compiled_is_told_before_anything_runs(net, data, monkeypatch, tmp_path):
    with pytest.raises(PlanError, match=r"Only a torch.nn.Module can be compiled.*--compiled"):
        holdfast.audit(lambda x: net(x), data, "linf:0.1", compiled=True)

    def broken(f, **_options):
        def run(x):
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    out = tmp_path / "out"
    with pytest.raises(
        PlanError, match=r"cannot be compiled here: .*no C\+\+ compiler.*--compiled"
    ):
        holdfast.audit(net, data, "linf:0.1", compiled=True, out=out)
    assert not (out / "journal.jsonl").is_file()
    assert net.training is False
