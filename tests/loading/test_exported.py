"""Exported programs: the module's own scores and gradients, for any number of rows."""

import contextlib
import io
import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from torch import nn

from holdfast.errors import ModelError
from holdfast.loading import HOW_TO_EXPORT, load_model
from holdfast.model import Model
from holdfast.threat import Access

SHAPE = (1, 4, 4)


def module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        net = nn.Sequential(*body, nn.Dropout(), nn.Flatten(), nn.Linear(48, 5))
        net(torch.rand(16, *SHAPE))  # running statistics that are not those of a fresh module
    return net.eval()


def save(path, net, x=None, batch=True, **options):
    x = torch.rand(2, *SHAPE) if x is None else x
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    program = torch.export.export(net, (x,), dynamic_shapes=shapes, **options)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {
        "free": save(folder / "free.pt2", module()),
        "fixed": save(folder / "fixed.pt2", module(), x=torch.rand(4, *SHAPE), batch=False),
    }


@pytest.mark.parametrize("kind", ["free", "fixed"])
@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_scores_and_gradients_are_those_of_the_module(saved, kind, n):
    loaded = load_model(str(saved[kind]))
    net, x = module(), torch.rand(n, *SHAPE)
    answers = []
    for f in (net, loaded.f):
        z = x.clone().requires_grad_(True)
        out = f(z)
        out[:, 0].sum().backward()
        answers.append((out.detach(), z.grad))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-6)
    assert loaded.access is Access.GRADIENTS
    assert ("4 rows at a time" in loaded.description) is (kind == "fixed")


@pytest.mark.parametrize("kind", ["free", "fixed"])
def test_it_runs_inside_a_session(saved, kind):
    model = Model(load_model(str(saved[kind])).f)
    before = {k: v.clone() for k, v in model.f.state_dict().items()}
    with model.session():
        x = torch.rand(5, *SHAPE)
        torch.testing.assert_close(model.logits(x), module()(x).detach(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.f.state_dict().items())


def test_a_wrong_shape_is_told_before_the_program_sees_it(saved):
    f = load_model(str(saved["free"])).f
    with pytest.raises(
        ModelError, match=r"takes inputs of shape \(1, 4, 4\).*have shape \(4, 4, 1"
    ):
        f(torch.rand(2, 4, 4, 1))


def test_training_mode_is_refused(tmp_path):
    path = save(tmp_path / "train.pt2", module().train())
    with pytest.raises(ModelError, match=r"model\.eval\(\) before torch\.export"):
        load_model(str(path))


def test_two_inputs_are_refused(tmp_path):
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    program = torch.export.export(Sum(), (torch.rand(2, 3), torch.rand(2, 3)))
    torch.export.save(program, tmp_path / "two.pt2")
    with pytest.raises(ModelError, match="takes 2 inputs"):
        load_model(str(tmp_path / "two.pt2"))


def test_the_lines_that_the_error_shows_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^    (.*)$", HOW_TO_EXPORT, re.MULTILINE))
    exec(code, {"model": module(), "x": torch.rand(7, *SHAPE)})
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(load_model("model.pt2").f(x), module()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"plain text"])
def test_what_is_no_program_is_told(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"Cannot read .*torch\.export\.save"):
        load_model(str(path))


def test_a_zip_of_other_things_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match="cannot load the program"):
        load_model(str(tmp_path / "model.pt2"))


# ------------------------------------------------------------ files that try to run code


class Touch:
    """Unpickling this makes a directory: the harmless form of running any code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def rewrite(source, target, change):
    """Copy an archive; ``change(name, content)`` returns the new content, None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def change_model(change):
    def on_entry(name, content):
        if not name.endswith("models/model.json"):
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return on_entry


def target_node(target):
    def change(tree):
        tree["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change_model(change)


def expression(text):
    def change(tree):
        def walk(node):
            if isinstance(node, dict):
                if "expr_str" in node:
                    node["expr_str"] = text
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)

        walk(tree)

    return change_model(change)


def tree_text(old, new):
    def change(tree):
        spec = tree["graph_module"]["module_call_graph"][0]["signature"]
        spec["in_spec"] = spec["in_spec"].replace(old, new)

    return change_model(change)


HOSTILE = {
    "torch.os.system": (target_node("torch.os.system"), "operator 'torch.os.system'"),
    "load_library": (target_node("torch.ops.load_library"), "operator 'torch.ops.load_library'"),
    "dunder": (target_node("torch.ops.aten.__class__.x"), "operator"),
    "from_file": (target_node("torch.ops.aten.from_file.default"), "operator"),
    "methodcaller": (target_node("_operator.methodcaller"), "operator"),
    "expression": (expression("__import__('os').getpid()"), "shape expression"),
    "nested expression": (expression("Add('open(1)')"), "shape expression"),
    "attribute": (expression("Symbol.mro()"), "shape expression"),
    "lambda": (expression("(lambda: 1)()"), "shape expression"),
    "tree type": (tree_text("builtins.dict", "collections.defaultdict"), "defaultdict"),
    "tree context": (tree_text('"[]"', '{\\"default_factory_module\\": \\"os\\"}'), "descri"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_program_that_reaches_out_is_refused(saved, tmp_path, name):
    change, reason = HOSTILE[name]
    path = rewrite(saved["free"], tmp_path / "hostile.pt2", change)
    with pytest.raises(ModelError, match=r"refused because.*" + re.escape(reason)):
        load_model(str(path))


@pytest.mark.parametrize("entry", ["data/aotinductor/model/x.so", "data/constants/custom_obj_0"])
def test_compiled_code_and_objects_are_refused(saved, tmp_path, entry):
    path = rewrite(saved["free"], tmp_path / "hostile.pt2", lambda name, content: content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"free/{entry}", b"x")
    with pytest.raises(ModelError, match="refused because it contains"):
        load_model(str(path))


def with_pickled_sample(saved, tmp_path, held):
    buffer = io.BytesIO()
    torch.save(((held,), {}), buffer)
    return rewrite(
        saved["free"],
        tmp_path / "hostile.pt2",
        lambda name, content: buffer.getvalue() if "sample_inputs" in name else content,
    )


def test_a_pickle_inside_is_not_run(saved, tmp_path):
    mark = tmp_path / "touched"
    path = with_pickled_sample(saved, tmp_path, Touch(mark))
    with pytest.raises(ModelError, match="cannot load the program"):
        load_model(str(path))
    assert not mark.exists()


def test_torch_itself_would_have_run_it(saved, tmp_path):
    """The attack of the last test works: this is what the guard is for."""
    mark = tmp_path / "touched"
    path = with_pickled_sample(saved, tmp_path, Touch(mark))
    with contextlib.suppress(TypeError, AttributeError, RuntimeError, pickle.UnpicklingError):
        torch.export.load(path)
    if not mark.exists():
        pytest.skip("this version of torch no longer falls back to pickle")


def test_the_environment_is_as_before(saved, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    load_model(str(saved["free"]))
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
