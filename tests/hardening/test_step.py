"""What recipes are lent: crafting that leaves no trace, random numbers that hang on the sample."""

from dataclasses import replace

import hardening_tools as small
import pytest
import torch
from torch import nn

from holdfast.attacks.base import Objective
from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.pgd import PGD
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.hardening.network import Network
from holdfast.hardening.step import own_batch, own_step


def batch(n=24):
    return own_batch(*small.digits(n).fetch(range(n)))


@pytest.mark.parametrize("is_eval", [True, False])
def test_crafting_leaves_modes_buffers_and_gradients_alone(is_eval):
    net = small.mlp(norm=True).train()
    step = replace(own_step(net, small.THREAT), is_eval=is_eval)
    before = small.weights(net)
    x_adv = step.attack(batch(), PGD(steps=3))
    assert all(m.training for m in net.modules())
    assert small.same(before, small.weights(net))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not x_adv.requires_grad
    assert float((x_adv - batch().x).abs().max()) <= 0.1 + 1e-6


def test_the_mode_while_crafting_makes_a_difference():
    """The planted defect of many scripts: attacking in training mode without saying so."""
    net = small.mlp(norm=True).train()
    step = own_step(net, small.THREAT)
    step.logits(batch().x)  # statistics move away from their start
    in_eval = step.attack(batch(), FGSM())
    in_train = replace(step, is_eval=False).attack(batch(), FGSM())
    assert not torch.equal(in_eval, in_train)


def test_the_radius_is_ramped_for_every_attack():
    step = own_step(small.mlp(), small.THREAT)
    step.ramp = 0.25
    for attack in (PGD(steps=3), PGD(steps=3, step_size=0.1), FGSM()):
        moved = (step.attack(batch(), attack) - batch().x).abs().max()
        assert float(moved) <= 0.025 + 1e-6
    assert float(step.bind(batch()).radius.max()) == pytest.approx(0.025)


def test_random_numbers_hang_on_the_sample_not_on_its_place():
    step, whole = own_step(small.mlp(), small.THREAT), batch()
    order = torch.arange(23, -1, -1)
    turned = replace(whole, x=whole.x[order], y=whole.y[order], ids=whole.ids[order])
    torch.testing.assert_close(
        step.attack(turned, PGD(steps=2))[order], step.attack(whole, PGD(steps=2))
    )
    step.index = 1
    other = step.attack(whole, PGD(steps=2))
    step.index = 0
    assert not torch.equal(other, step.attack(whole, PGD(steps=2)))


def test_an_objective_replaces_the_attacks_loss():
    step, whole = own_step(small.fitted(2), small.THREAT), batch()
    wanted = (whole.y + 1) % 10

    def towards(logits, target):
        return -nn.functional.cross_entropy(logits, target, reduction="none")

    x_adv = step.attack(whole, PGD(steps=10), objective=Objective(towards, (wanted,)))
    reached, before = (
        towards(step.logits_without_gradient(x), wanted).mean() for x in (x_adv, whole.x)
    )
    assert float(reached) > float(before) + 1


def test_a_recipe_in_ones_own_loop_in_three_lines():
    net, recipe = small.mlp(), PGDTraining(PGD(steps=2))
    x, y = small.digits(256).fetch(range(256))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    step = own_step(net, small.THREAT)
    for step.index in range(40):
        loss = recipe(step, own_batch(x, y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_input_gradients_can_be_differentiated_by_the_weights():
    step, whole = own_step(small.mlp(), small.THREAT), batch()

    def loss(logits):
        return nn.functional.cross_entropy(logits, whole.y, reduction="none")

    gradient = step.input_gradient(whole.x, loss, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is not None for p in step.weights()[:-1])


def test_weight_gradients_are_those_of_backward():
    net, whole = small.mlp(), batch()
    step = own_step(net, small.THREAT)
    found = step.weight_gradients(whole.cross_entropy(step.logits(whole.x)).mean())
    assert all(p.grad is None for p in net.parameters())
    step.backward(whole.cross_entropy(step.logits(whole.x)).mean())
    for gradient, weight in zip(found, net.parameters(), strict=True):
        assert torch.equal(gradient, weight.grad)


def test_the_network_normalises_and_answers_in_logits():
    from holdfast.model import Model

    net = small.mlp()
    x, _ = small.digits(4).fetch(range(4))
    network = Network(Model(net, mean=0.5, std=0.25))
    torch.testing.assert_close(network(x), net((x - 0.5) / 0.25))
