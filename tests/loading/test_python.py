"""Models from Python code, and their weights."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.errors import ModelError
from holdfast.loading import load_model
from holdfast.model import Model
from holdfast.threat import Access

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A directory with the user's code, which is the current one."""
    shutil.copy(TOYS, tmp_path / "toy_zoo.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("toy_zoo", None)


def zoo(toys):
    import toy_zoo

    return toy_zoo


@pytest.mark.parametrize(
    "reference",
    ["toy_zoo:net", "toy_zoo:net(width=4)", "toy_zoo:net(4, classes=3)", "toy_zoo:instance"],
)
def test_functions_calls_and_instances(toys, reference):
    loaded = load_model(reference)
    x = torch.rand(2, 12)
    assert torch.equal(loaded.f(x), zoo(toys).net()(x))
    assert loaded.description.startswith(reference)


def test_classes_files_and_attributes(toys):
    x = torch.rand(2, 12)
    expected = load_model("toy_zoo:net").f(x)
    for reference in ("toy_zoo:Net", "toy_zoo.py:net", f"{toys}/toy_zoo.py:Net()"):
        assert torch.equal(load_model(reference).f(x), expected)


def test_functions_of_the_inputs_are_the_model(toys):
    x = torch.rand(4, 12)
    assert torch.equal(load_model("toy_zoo:scores").f(x), x[:, :3])
    model = Model(load_model("toy_zoo:labels").f)
    assert model.recognise(x.mul(2)).kind == "labels"


def test_estimators_give_scores(toys):
    loaded = load_model("toy_zoo:Estimator")
    assert loaded.access is Access.SCORES
    model = Model(loaded.f, access=loaded.access)
    x = torch.rand(3, 1, 2, 2) + 0.1
    with model.session():
        model.recognise(x)
        p = torch.softmax(model.logits(x), 1)
    expected = x.flatten(1)[:, :2] / x.flatten(1)[:, :2].sum(1, keepdim=True)
    torch.testing.assert_close(p, expected)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("toy_zoo:absent", r"has no 'absent'.*It has: .*net"),
        ("toy_zoo:net(1", "Cannot read 'toy_zoo:net"),
        ("toy_zoo:net(width=open('x'))", "must be plain values"),
        ("toy_zoo:net()[0]", "Cannot read"),
        ("toy_zoo:Net().body", "Cannot read"),
        ("toy_zoo:needs_width()", "building toy_zoo:needs_width.*width"),
        ("toy_zoo:broken", r"broken \(.*toy_zoo\.py, line \d+\): RuntimeError: no weights"),
        ("toy_zoo:not_a_model", "gives a int"),
        ("toy_zoo:number", "gives a int"),
        ("no_such_zoo:net", "no Python module 'no_such_zoo'.*current directory"),
        ("no_such_file.py:net", "There is no file no_such_file.py"),
        ("model.xyz", "Give a torch.export program"),
    ],
)
def test_mistakes_are_told(toys, reference, message):
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load_model(reference)


def test_missing_packages_are_named(toys):
    (toys / "wants.py").write_text("import package_that_is_not_there\n")
    with pytest.raises(ModelError, match="wants needs the package 'package_that_is_not_there'"):
        load_model("wants:net")


def test_code_that_does_not_compile_is_told(toys):
    (toys / "torn.py").write_text("def net(:\n")
    with pytest.raises(ModelError, match=r"importing torn.*: SyntaxError"):
        load_model("torn:net")


# ------------------------------------------------------------ weights


def trained():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    return net


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: s, "weights w.pt"),
        (lambda s: {"state_dict": s, "epoch": 3}, "entry 'state_dict'"),
        (lambda s: {"model": {"state_dict": s}}, "entry 'model.state_dict'"),
        (lambda s: prefixed(s, "module."), "prefix 'module.' removed"),
        (lambda s: prefixed(s, "_orig_mod.module."), "prefix '_orig_mod.module.' removed"),
        (lambda s: {"net": prefixed(s, "model.")}, "entry 'net', prefix 'model.' removed"),
    ],
)
def test_state_dicts_in_their_usual_wrappings(toys, wrap, note):
    net = trained()
    torch.save(wrap(net.state_dict()), "w.pt")
    loaded = load_model("toy_zoo:net", "w.pt")
    x = torch.rand(2, 12)
    assert torch.equal(loaded.f(x), net(x))
    assert note in loaded.description


def test_safetensors(toys):
    net = trained()
    save_file(net.state_dict(), "w.safetensors")
    x = torch.rand(2, 12)
    assert torch.equal(load_model("toy_zoo:net", "w.safetensors").f(x), net(x))


def test_a_prefix_that_the_network_has_stays(toys):
    state = prefixed(trained().state_dict(), "body.")
    torch.save(prefixed(state, "module."), "w.pt")
    loaded = load_model("toy_zoo:Net", "w.pt")
    assert torch.equal(loaded.f.state_dict()["body.1.weight"], state["body.1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "3.bias"}, r"missing: 3\.bias"),
        (lambda s: s | {"9.bias": torch.zeros(1)}, r"not in the network: 9\.bias"),
        (
            lambda s: s | {"3.bias": torch.zeros(7)},
            r"another shape: 3\.bias \(7,\) instead of \(3,",
        ),
        (lambda s: {"epoch": 3}, "holds no state dict.*epoch"),
        (lambda s: [1, 2], "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_told(toys, change, message):
    torch.save(change(trained().state_dict()), "w.pt")
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load_model("toy_zoo:net", "w.pt")


def test_unreadable_weights_are_told(toys):
    Path("w.pt").write_bytes(b"torn")
    Path("w.safetensors").write_bytes(b"torn")
    for name in ("w.pt", "w.safetensors"):
        with pytest.raises(ModelError, match=name):
            load_model("toy_zoo:net", name)
    with pytest.raises(ModelError, match=r"no weights file absent\.pt"):
        load_model("toy_zoo:net", "absent.pt")
    with pytest.raises(ModelError, match="cannot take the weights"):
        load_model("toy_zoo:scores", "w.pt")


# ------------------------------------------------------------ files that are refused


class Marking:
    """Unpickling this makes a directory."""

    def __reduce__(self):
        return (os.mkdir, ("touched",))


def test_pickles_are_refused_and_not_run(toys):
    torch.save({"state_dict": Marking()}, "whole.pt")
    torch.save(trained(), "module.pth")
    for name in ("whole.pt", "module.pth"):
        with pytest.raises(ModelError, match=r"(?s)could run any code.*torch\.export\.export"):
            load_model(name)
        with pytest.raises(ModelError, match=r"(?s)could run any code.*state_dict\(\)"):
            load_model("toy_zoo:net", name)
    assert not Path("touched").exists()


def test_a_state_dict_is_not_a_model(toys):
    torch.save(trained().state_dict(), "w.pth")
    with pytest.raises(ModelError, match=r"holds weights only.*--weights w\.pth"):
        load_model("w.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(toys):
    torch.jit.trace(trained(), torch.rand(1, 12)).save("script.pt")
    with pytest.raises(ModelError, match=r"(?s)TorchScript.*Save it as a program instead"):
        load_model("script.pt")


def test_a_file_that_is_not_there(toys):
    with pytest.raises(ModelError, match=r"There is no file model\.pt2"):
        load_model("model.pt2")
    Path("model.pt2").write_bytes(b"")
    with pytest.raises(ModelError, match="leave out --weights"):
        load_model("model.pt2", "w.pt")
