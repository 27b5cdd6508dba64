"""The contract of AttackBench's wrappers, and its way of finding and calling an attack."""

from functools import partial

import pytest
import torch

from holdfast.adapters import attackbench
from holdfast.contracts._toys import Net, inputs
from holdfast.errors import DataError


def posed():
    model, x = Net(12, 4, seed=80), inputs(81, 5, (3, 2, 2))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_it_is_called_as_every_wrapper_is(norm):
    """AttackBench: ``partial(module._wrapper, attack=getter())``, then keyword arguments alone."""
    model, x, y = posed()
    wrapped = partial(attackbench._wrapper, attack=attackbench.attack(norm, budget=80))
    before = x.clone()
    x_adv = wrapped(model=model, inputs=x, labels=y, targeted=False, targets=None)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert not x_adv.requires_grad
    assert torch.equal(x, before)
    assert (model(x_adv).argmax(1) != y).sum() >= 4


def test_targets_count_only_if_targeted():
    model, x, y = posed()
    attack, target = attackbench.attack(budget=120), (y + 1) % 4
    aimed = attack(model=model, inputs=x, labels=y, targets=target, targeted=True)
    assert (model(aimed).argmax(1) == target).sum() >= 4
    free = attack(model=model, inputs=x, labels=y, targets=target, targeted=False)
    assert torch.equal(free, attack(model=model, inputs=x, labels=y))
    with pytest.raises(DataError, match="targets"):
        attack(model=model, inputs=x, labels=y, targeted=True)


def test_what_is_fooled_already_comes_back_as_it_was():
    model, x, y = posed()
    wrong = (y + 1) % 4
    assert torch.equal(attackbench.attack(budget=60)(model, x, wrong), x)


def test_its_weights_need_no_freezing_and_stay():
    model, x, y = posed()
    before = [p.detach().clone() for p in model.parameters()]
    attackbench.attack(budget=60)(model, x, y)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
        assert parameter.requires_grad
