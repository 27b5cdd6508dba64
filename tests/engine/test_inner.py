"""The attack inside a training step: what it gives, what it leaves alone, and what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops import counted_ops
from torch import nn

from holdfast import APGD, FGSM, PGD, CarliniWagner, Model, parse_threat
from holdfast.attacks.base import Objective, Problem
from holdfast.engine.inner import inner_attack
from holdfast.engine.jobs import Job
from holdfast.engine.random import Rng
from holdfast.engine.slots import Rules, Slots
from holdfast.errors import PlanError

EPS = 0.1
SYNCS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * 36, 5)).train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(12, 1, 8, 8, generator=generator)
    return x, torch.randint(5, (12,), generator=generator)


def bare_loop(net, x, y, steps, step_size):
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y, reduction="sum"), x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, (x - EPS).clamp_min(0)), (x + EPS).clamp_max(1))
    return x_adv


def test_is_the_loop_that_papers_write(net, batch):
    attack = PGD(steps=5, step_size=0.03, random_start=False)
    found = inner_attack(attack, Model(net), *batch, f"linf:{EPS}")
    expected = bare_loop(net.eval(), *batch, 5, 0.03)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_leaves_the_model_in_the_middle_of_its_training(net, batch):
    net[1].eval()  # a mixture of modes, as with frozen statistics
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    net[0].weight.grad = gradient = torch.ones_like(net[0].weight)
    seen, state = [], torch.random.get_rng_state()
    net.register_forward_hook(lambda module, _, __: seen.append(module.training))
    inner_attack(PGD(steps=2), Model(net), *batch, f"linf:{EPS}")
    assert seen == [False, False]
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())
    assert net[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_mode_comes_back_after_a_crash(net, batch):
    net.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(Exception, match="ZeroDivision"):
        inner_attack(PGD(steps=2), Model(net), *batch, f"linf:{EPS}")
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("attack", [PGD(steps=4), APGD(steps=4), FGSM()])
def test_best_is_never_below_last(net, batch, attack):
    model = Model(net.eval())

    def loss(x):
        return F.cross_entropy(net(x), batch[1], reduction="none")

    options = (attack, model, *batch, f"linf:{EPS}", 3)
    last, best = inner_attack(*options), inner_attack(*options, keep="best")
    assert (loss(best) >= loss(last) - 1e-6).all()
    allowed = parse_threat(f"linf:{EPS}").bind(batch[0], model.domain)
    assert allowed.contains(last).all()
    assert allowed.contains(best).all()


def test_ascends_the_callers_objective_from_the_callers_start(net, batch):
    x, y = batch
    net.eval()
    clean = net(x).softmax(1).detach()

    def divergence(logits, p):
        return (p * (p.log() - logits.log_softmax(1))).sum(1)

    start = (x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    attack = PGD(steps=8, step_size=0.03)
    found = inner_attack(
        attack,
        Model(net),
        x,
        y,
        f"linf:{EPS}",
        objective=Objective(divergence, (clean,)),
        start=start,
    )
    assert (divergence(net(found), clean) > 10 * divergence(net(start), clean)).all()
    one = inner_attack(PGD(steps=1, step_size=0.0), Model(net), x, y, f"linf:{EPS}", start=start)
    assert torch.equal(one, start)


def test_rows_have_their_own_numbers(net, batch):
    x, y = batch
    model = Model(net)
    rng = Rng.from_seed(5, len(x))
    whole = inner_attack(PGD(steps=3), model, x, y, f"linf:{EPS}", rng)
    part = inner_attack(PGD(steps=3), model, x[4:8], y[4:8], f"linf:{EPS}", Rng(rng.key[4:8]))
    torch.testing.assert_close(whole[4:8], part, rtol=0, atol=1e-6)
    other = inner_attack(PGD(steps=3), model, x, y, f"linf:{EPS}", 6)
    assert not torch.equal(whole, other)


def test_minimal_attacks_are_refused(net, batch):
    with pytest.raises(PlanError, match="fixed"):
        inner_attack(CarliniWagner(), Model(net), *batch, "l2:1")


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize(("attack", "most"), [(PGD(), 25), (PGD(momentum=0.9), 35)])
def test_nothing_is_read_back_and_little_is_done(net, batch, attack, most, keep):
    model = Model(net)
    allowed = parse_threat(f"linf:{EPS}").bind(batch[0], model.domain)
    inner_attack(attack, model, *batch, allowed, keep=keep)  # constants are made once

    def run(steps):
        some = type(attack)(steps=steps, momentum=attack.momentum)
        with counted_ops() as ops:
            inner_attack(some, model, *batch, allowed, keep=keep)
        return ops

    one, six = run(1), run(6)
    assert not SYNCS & set(six)
    with counted_ops() as bare:
        bare_loop(net.eval(), *batch, 1, 0.1)
    own = (sum(six.values()) - sum(one.values())) / 5 - sum(bare.values())
    assert own < most  # bookkeeping, projection and views


@pytest.mark.parametrize("attack", [PGD(steps=30), APGD(steps=30)])
def test_a_step_of_the_slots_asks_the_device_one_thing(batch, attack):
    """Whether any job is over or claims something; on the CPU, where it is free, about NaN too."""
    x, _ = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.arange(5.0))  # nothing fools it
    model, n = Model(net), len(x)
    model.recognise(x)
    none, y = torch.full((n,), -1), torch.full((n,), 4)
    allowed = parse_threat(f"linf:{EPS}").bind(x, model.domain)
    problem = Problem(x, y, none, allowed, Rng.from_seed(3, n), net(x).detach())
    slots = Slots(model, n, Rules())
    slots.add(attack, [Job(i, 0) for i in range(n)], problem, none)
    slots.tick()
    with counted_ops() as ops:
        assert slots.tick() == []
    assert sum(ops[name] for name in SYNCS) <= 2
