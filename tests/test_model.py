"""The model: heads of every kind, nothing changed by looking."""

from __future__ import annotations

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks._losses import cross_entropy
from holdfast.attacks.base import Objective, Query
from holdfast.engine.preflight import preflight
from holdfast.errors import DataError, ModelCrash, ModelError
from holdfast.model import Model, RowBlock
from holdfast.threat import Access


def net(k=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, k))


X = torch.linspace(0, 1, 60).reshape(12, 5)


def gradient_query(x, y):
    return Query(x, Objective(cross_entropy, (y, torch.full_like(y, -1))))


HEADS = {
    "logits": (lambda f: f, 3),
    "probabilities": (lambda f: lambda x: f(x).softmax(1), 3),
    "arrays": (lambda f: lambda x: f(torch.as_tensor(np.asarray(x))).detach().numpy(), 3),
    "dict": (lambda f: lambda x: {"logits": f(x), "hidden": x}, 3),
    "object": (lambda f: lambda x: types.SimpleNamespace(logits=f(x)), 3),
    "tuple": (lambda f: lambda x: (f(x), x), 3),
    "one logit": (lambda f: lambda x: f(x)[:, 0], 1),
    "one logit, a column": (lambda f: lambda x: f(x)[:, :1], 1),
    "one probability": (lambda f: lambda x: f(x)[:, 0].sigmoid(), 1),
}


def crossing():
    """Three scores of which the first is negative for some inputs and positive for others."""
    plain = net(3)
    with torch.no_grad():
        plain[2].bias[0] -= plain(X)[:, 0].median()
    return plain


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_gives_the_same_answers(kind):
    wrap, k = HEADS[kind]
    plain = crossing()
    model = Model(wrap(plain))
    model.recognise(X)
    with torch.no_grad():
        z = plain(X)
    expected = z.argmax(1) if k == 3 else (z[:, 0] > 0).long()
    with model.session():
        logits = model.logits(X)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.argmax(1), expected)
    if k == 3:
        torch.testing.assert_close(logits.softmax(1), z.softmax(1))
    else:
        torch.testing.assert_close(logits.softmax(1)[:, 1], z[:, 0].sigmoid())


def test_a_head_can_be_told():
    f = lambda x: x[:, 0] * 0.5 + 0.2  # noqa: E731 - logits that look like probabilities
    seen, told = Model(f), Model(f, head="logit")
    assert (seen.recognise(X).kind, told.recognise(X).kind) == ("probability", "logit")
    with pytest.raises(ModelError, match="Unknown head 'softmax'"):
        Model(f, head="softmax")


def test_labels_become_scores_without_gradients():
    plain = net(4)
    model = Model(lambda x: plain(x).argmax(1), n_classes=4)
    model.recognise(X)
    assert model.access is Access.LABELS
    assert model.n_classes == 4
    with model.session():
        assert torch.equal(model.logits(X).argmax(1), plain(X).argmax(1))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: torch.zeros(len(x), 3, 8, 8), "classifier"),
        (lambda x: torch.tensor(1.0), "single number"),
        (lambda x: torch.full((len(x), 3), torch.nan), "not finite"),
        (lambda x: torch.zeros(3, 2), "first dimension"),
        (lambda x: "cat", "str"),
    ],
)
def test_what_is_no_classifier_is_refused(f, message):
    with pytest.raises(ModelError, match=message):
        Model(f).recognise(X)


def test_state_dicts_are_no_models():
    with pytest.raises(ModelError, match="holds weights only"):
        Model(net().state_dict())  # type: ignore[arg-type]


def modules_behind(kind):
    inner = net()
    if kind == "closure":
        return inner, lambda x: inner(x)
    if kind == "method":
        return inner, inner.forward
    return inner, functools.partial(lambda m, x: m(x), inner)


@pytest.mark.parametrize("kind", ["closure", "method", "partial"])
def test_modules_behind_functions_come_back_as_they_were(kind):
    inner, f = modules_behind(kind)
    inner.train()
    inner[0].eval()
    inner[2].weight.requires_grad_(False)
    with Model(f).session():
        assert not inner.training
        assert not any(p.requires_grad for p in inner.parameters())
    assert [m.training for m in inner] == [False, True, True]
    assert inner.training
    assert not inner[2].weight.requires_grad
    assert inner[0].weight.requires_grad


def test_buffers_that_the_model_changes_are_restored():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.net(x)

    model = Counting()
    with Model(model).session() as m:
        m.recognise(X)
        m.logits(X)
    assert model.calls == 0


def test_passes_are_counted_per_input():
    model = Model(net())
    model.recognise(X)
    y = torch.zeros(12, dtype=torch.int64)
    with model.session():
        model.logits(X[:7])
        model.answer([gradient_query(X, y), Query(X[:3])])
        model.replay(X[:2])
    assert (model.passes.forward, model.passes.backward) == (7 + 12 + 3 + 2, 12)


@pytest.mark.parametrize(
    "block", [RowBlock(4), RowBlock(32, is_fixed=True), RowBlock(4, False, True)]
)
def test_blocks_change_no_value(block):
    model = Model(net())
    model.recognise(X)
    y = torch.arange(12) % 3
    with model.session():
        plain = model.answer([gradient_query(X, y), gradient_query(X[:5], y[:5])])
        model.block = block
        padded = model.answer([gradient_query(X, y), gradient_query(X[:5], y[:5])])
    for a, b in zip(plain, padded, strict=True):
        torch.testing.assert_close(a.logits, b.logits)
        torch.testing.assert_close(a.gradients, b.gradients)
        torch.testing.assert_close(a.losses, b.losses)


def test_gradients_are_those_of_single_inputs():
    plain = net()
    model = Model(plain, mean=[0.5] * 5, std=2.0)
    y = torch.arange(12) % 3
    model.recognise(X)
    with model.session():
        found = model.answer([gradient_query(X, y)])[0].gradients
    for i in range(12):
        x = X[i : i + 1].clone().requires_grad_()
        loss = nn.functional.cross_entropy(plain((x - 0.5) / 2), y[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], torch.autograd.grad(loss, x)[0])
    assert all(p.grad is None for p in plain.parameters())


def test_models_that_mix_inputs_are_refused():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x - x.mean(0))

    y = torch.zeros(12, dtype=torch.int64)
    model = Model(Mixing())
    with model.session(), pytest.raises(ModelError, match="depends on the other inputs"):
        preflight(model, X, y, y)
    alone = Model(Mixing(), batch_size=1)
    with alone.session():
        preflight(alone, X, y, y)
        assert torch.equal(alone.logits(X), alone.replay(X))


def test_models_without_gradients_are_noticed():
    inner = net()
    y = torch.zeros(12, dtype=torch.int64)
    model = Model(lambda x: inner(x.detach()))
    with model.session():
        found = {finding.code: finding.text for finding in preflight(model, X, y, y)}
    assert "smooth stand-ins" in found["no_gradients"]
    assert model.access is Access.GRADIENTS  # attacks go through what takes the detach's place
    assert not model.has_gradients


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.astype("f4"),  # arrays alone have astype: the model cannot run on tensors
        np.asarray,  # runs on tensors too, but not on those that want gradients
        lambda x: x.numpy() if isinstance(x, torch.Tensor) else x,
    ],
)
def test_models_without_any_gradient_are_attacked_by_scores(read):
    weights = net()[0].weight.detach().numpy()
    y = torch.zeros(12, dtype=torch.int64)
    model = Model(lambda x: read(x) @ weights.T)
    with model.session():
        codes = {finding.code for finding in preflight(model, X, y, y)}
    assert "no_gradients" in codes
    assert model.access is Access.SCORES


def test_labels_that_do_not_fit_are_refused():
    model = Model(net(3))
    for labels, message in ((torch.tensor([5]), "go up to 5"), (torch.tensor([-1]), "-1")):
        with model.session(), pytest.raises(DataError, match=message):
            preflight(model, X, torch.zeros(12, dtype=torch.int64), labels)


def test_access_can_only_be_narrowed():
    model = Model(net(), access="scores")
    with pytest.raises(ModelError, match="cannot have gradients"):
        model.restricted(Access.GRADIENTS)


def test_crashes_are_the_models():
    class Fragile(nn.Module):
        def forward(self, x):
            if len(x) != 12:
                raise IndexError("only twelve")
            return x[:, :3]

    model = Model(Fragile())
    model.recognise(X)
    with model.session(), pytest.raises(ModelCrash, match="IndexError: only twelve"):
        model.logits(X[:5])


def both_differences(logits, y):
    """The two wrong logits minus the right one, for three classes."""
    wrong = torch.stack([(y + 1) % 3, (y + 2) % 3], 1)
    return logits.gather(1, wrong) - logits.gather(1, y[:, None])


@pytest.mark.parametrize("rows", [2, 3, 256])
def test_several_gradients_from_one_forward_pass(rows, monkeypatch):
    """They equal those asked one by one, also where the batch is cut and beside other queries."""
    monkeypatch.setattr(Model, "call_rows", lambda self, shape: rows)
    model, y = Model(net()), torch.arange(12) % 3
    model.recognise(X)
    with model.session():
        several = Query(X, Objective(both_differences, (y,), width=2))
        before = (model.passes.forward, model.passes.backward)
        single, answer, bare = model.answer([gradient_query(X, y), several, Query(X)])
        paid = (model.passes.forward - before[0], model.passes.backward - before[1])
        one_by_one = [
            model.answer(
                [Query(X, Objective(lambda z, y, j=j: both_differences(z, y)[:, j], (y,)))]
            )
            for j in (0, 1)
        ]
    assert paid == (36, 36)
    assert answer.losses.shape == (12, 2)
    assert answer.gradients.shape == (12, 2, 5)
    for j in (0, 1):
        torch.testing.assert_close(answer.gradients[:, j], one_by_one[j][0].gradients)
        torch.testing.assert_close(answer.losses[:, j], one_by_one[j][0].losses)
    assert not torch.allclose(answer.gradients[:, 0], answer.gradients[:, 1])
    torch.testing.assert_close(bare.logits, single.logits)
