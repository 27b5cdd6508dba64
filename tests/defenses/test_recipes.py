"""The defining property of every recipe: what it becomes where its own idea is switched off."""

from dataclasses import replace

import pytest
import torch
from recipe_tools import batch_of, network, step_for
from torch import nn
from torch.nn import functional as F

from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.pgd import PGD
from holdfast.defenses.awp import AWP, relative_move
from holdfast.defenses.base import Batch
from holdfast.defenses.eat import EAT
from holdfast.defenses.ensemble import Ensemble
from holdfast.defenses.fgsm_rs import FGSMRS
from holdfast.defenses.free import Free
from holdfast.defenses.gaussian import Gaussian
from holdfast.defenses.grad_align import GradAlign
from holdfast.defenses.mart import MART
from holdfast.defenses.max import MAX
from holdfast.defenses.mixed import Mixed
from holdfast.defenses.msd import MSD
from holdfast.defenses.n_fgsm import NFGSM
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.defenses.smooth_adv import SmoothAdv
from holdfast.defenses.trades import TRADES
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball

STEPS = PGD(steps=3)


def value(scalar):
    return float(scalar.detach())


def gradients(recipe, step, batch):
    """Of one update, and the batch statistics it leaves."""
    step.network.zero_grad()
    before = {name: b.clone() for name, b in step.network.named_buffers()}
    recipe.update(step, batch)
    found = {name: p.grad.clone() for name, p in step.network.named_parameters()}
    found |= {name: b.clone() for name, b in step.network.named_buffers()}
    for name, b in step.network.named_buffers():
        b.copy_(before[name])
    return found


def assert_same(recipe, other, *threats, exactly=True, **changes):
    step = step_for(*threats, **changes)
    first, second = (gradients(r, step, batch_of()) for r in (recipe, other))
    for name, value in first.items():
        if exactly:
            assert torch.equal(value, second[name]), name
        else:
            torch.testing.assert_close(value, second[name])


class CrossEntropy(Gaussian):  # type: ignore[misc]
    """Ordinary training."""

    def craft(self, step, batch):
        return batch


CLEAN = CrossEntropy(sigma=0.0)


@pytest.mark.parametrize(
    ("recipe", "plain"),
    [
        (TRADES(beta=0), CLEAN),
        (Mixed(clean=1), CLEAN),
        (Gaussian(sigma=0), CLEAN),
        (Mixed(clean=0, attack=STEPS), PGDTraining(STEPS)),
        (MAX(STEPS), PGDTraining(STEPS)),
        (MSD(steps=3, random_start=False), PGDTraining(replace(STEPS, random_start=False))),
        (AWP(PGDTraining(STEPS), gamma=0), PGDTraining(STEPS)),
        (AWP(TRADES(attack=STEPS), gamma=0), TRADES(attack=STEPS)),
        (AWP(PGDTraining(STEPS), gamma=1, warmup=0.5), PGDTraining(STEPS)),
        (GradAlign(FGSMRS(), weight=0), FGSMRS()),
        (NFGSM(noise=0), FGSMRS(step_size=1, random_start=False)),
        (FGSMRS(random_start=False, step_size=1), PGDTraining(FGSM())),
    ],
    ids=lambda r: r.describe(),
)
def test_becomes(recipe, plain):
    assert_same(recipe, plain)


def test_single_norm_of_each_kind():
    for threat in ("linf:0.1", "l2:0.5", "l1:1"):
        assert_same(MSD(steps=3), PGDTraining(replace(STEPS, random_start=False)), threat)
        assert_same(MAX(STEPS), PGDTraining(STEPS), threat)
        assert_same(EAT(STEPS), PGDTraining(STEPS), threat, exactly=False)


# ------------------------------------------------------------------ losses


def test_trades_ascends_the_divergence_and_sends_gradients_through_both_answers():
    step, batch = step_for(), batch_of()
    crafted = TRADES(attack=replace(STEPS, random_start=False)).craft(step, batch)
    clean = step.logits_without_gradient(batch.x)
    moved = step.logits_without_gradient(crafted.adversarial)
    noisy = step.logits_without_gradient(step.bind(batch).sample(step.rng(batch, 5)))
    divergence = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    by_chance = F.kl_div(noisy.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    assert (divergence > by_chance).all()

    loss = TRADES(beta=2).loss(step, crafted)
    z, z_adv = step.logits(batch.x), step.logits(crafted.adversarial)
    divergence = F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="batchmean")
    expected = F.cross_entropy(z, batch.y) + 2 * divergence
    torch.testing.assert_close(loss, expected)


def test_trades_from_the_input_itself_would_not_move():
    """Why it starts beside it: the gradient of the divergence at x is zero."""
    step, batch = step_for(), batch_of()
    still = TRADES(attack=PGD(steps=3, random_start=False), start=0.0).craft(step, batch)
    moved = TRADES(attack=PGD(steps=3, random_start=False)).craft(step, batch)

    def length(b):
        return float((b.adversarial - batch.x).abs().mean())

    assert length(still) < length(moved)


def test_mart_weighs_divergence_by_the_clean_mistake():
    step, batch = step_for(net=network(batch_norm=False)), batch_of()
    crafted = MART(attack=STEPS).craft(step, batch)
    loss = [value(MART(beta=b).loss(step, crafted)) for b in (0.0, 1.0, 2.0)]
    z, z_adv = step.logits(batch.x), step.logits(crafted.adversarial)
    p = z.softmax(1).gather(1, batch.y[:, None]).squeeze(1)
    kl = F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="none").sum(1)
    assert loss[1] - loss[0] == pytest.approx(value((kl * (1 - p)).mean()), rel=1e-3)
    assert loss[2] - loss[0] == pytest.approx(2 * (loss[1] - loss[0]), rel=1e-3)


def test_predicted_labels_do_not_leak():
    step, batch = step_for(), batch_of()
    answers = step.logits_without_gradient(batch.x).argmax(1)
    by_answer = Mixed(attack=STEPS, predicted=True).craft(step, batch)
    told = Mixed(attack=STEPS).craft(step, replace(batch, y=answers))
    assert torch.equal(by_answer.adversarial, told.adversarial)
    assert torch.equal(by_answer.y, batch.y)


# ------------------------------------------------------------------ single steps


def test_fgsm_with_a_random_start_is_pgd_of_one_step_from_there():
    step, batch = step_for(), batch_of()
    start = step.bind(batch).sample(step.rng(batch))
    one = step.attack(batch, PGD(steps=1, step_size=0.125), start=start)
    assert torch.equal(FGSMRS(step_size=1.25).craft(step, batch).adversarial, one)


def test_noise_of_n_fgsm_leaves_the_ball_but_not_the_domain():
    step, batch = step_for(), batch_of(64)
    x_adv = NFGSM().craft(step, batch).adversarial
    assert 0.1 < (x_adv - batch.x).abs().max() <= 3 * 0.1 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_gradients_of_a_linear_model_of_two_classes_are_aligned():
    batch = batch_of()
    batch = replace(batch, y=batch.y % 2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    penalty = GradAlign().penalty(step_for(net=linear), batch)
    torch.testing.assert_close(penalty, torch.zeros(8), atol=1e-6, rtol=0)
    bent = GradAlign().penalty(step_for("linf:0.5"), batch)
    assert bent.mean() > 0.01


def test_grad_align_lowers_its_penalty():
    step, batch = step_for("linf:0.5", net=network(batch_norm=False)), batch_of()
    recipe = GradAlign(weight=10.0)
    before = value(recipe.penalty(step, batch).mean())
    optimiser = torch.optim.SGD(step.weights(), 0.05)
    for _ in range(20):
        optimiser.zero_grad()
        recipe.update(step, batch)
        optimiser.step()
    assert value(recipe.penalty(step, batch).mean()) < 0.7 * before


def test_free_uses_the_gradient_of_the_weights_pass():
    step, batch = step_for(), batch_of()
    first = gradients(Free(m=1), step, batch)
    plain = gradients(CLEAN, step_for(), batch)  # no change yet: an ordinary update
    assert all(torch.equal(first[name], plain[name]) for name in first)
    step.network.train()
    x = batch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(batch.cross_entropy(step.logits(x)).sum(), x)
    torch.testing.assert_close(step.state["free/delta"], 0.1 * gradient.sign())
    crafted = Free(m=1).craft(step, batch)
    expected = (batch.x + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(crafted.adversarial.detach(), expected)


def test_free_keeps_the_change_of_places_that_a_smaller_batch_does_not_have():
    step = step_for()
    Free().update(step, batch_of(8))
    before = step.state["free/delta"].clone()
    Free().update(step, batch_of(5))
    assert step.state["free/delta"].shape == before.shape
    assert torch.equal(step.state["free/delta"][5:], before[5:])
    Free().update(step, batch_of(9))
    assert len(step.state["free/delta"]) == 9


def test_free_makes_m_updates_of_a_batch_and_pays_nothing_for_crafting():
    assert Free(m=8).repeats == 8
    assert Free(m=8).passes == 8 * 2
    assert AWP(Free(m=8)).passes == 8 * 4


# ------------------------------------------------------------------ weights


def test_awp_moves_each_layer_by_gamma_of_its_norm():
    weight, gradient = torch.randn(4, 3), torch.randn(4, 3)
    move = relative_move(weight, gradient, 0.01)
    torch.testing.assert_close(move.norm(), 0.01 * weight.norm())
    torch.testing.assert_close(move / move.norm(), gradient / gradient.norm())
    assert not relative_move(torch.randn(4), torch.randn(4), 0.01).any()


def test_awp_takes_its_gradient_where_the_loss_is_larger():
    step, batch = step_for(net=network(batch_norm=False)), batch_of()
    plain = PGDTraining(STEPS)
    crafted = plain.craft(step, batch)
    here = value(plain.loss(step, crafted))
    there = value(AWP(plain, gamma=0.05).update(step, batch))
    assert there > here
    assert value(plain.loss(step, crafted)) == here


def test_awp_leaves_batch_statistics_to_the_second_pass():
    """Its ascent runs in training mode; the statistics must move once per update."""
    step, batch = step_for(), batch_of()
    gradients_of = gradients(AWP(PGDTraining(STEPS), gamma=0.01), step, batch)
    counted = [v for name, v in gradients_of.items() if name.endswith("num_batches_tracked")]
    assert [int(v) for v in counted] == [1]


def test_awp_puts_the_weights_back_after_an_error():
    class Breaks(CrossEntropy):
        def loss(self, step, batch):
            if step.notes:
                raise RuntimeError("in the second pass")
            step.notes["seen"] = torch.ones(())
            return super().loss(step, batch)

    step = step_for()
    before = [p.detach().clone() for p in step.weights()]
    with pytest.raises(RuntimeError, match="second pass"):
        AWP(Breaks(sigma=0), gamma=0.1).update(step, batch_of())
    assert all(torch.equal(p, b) for p, b in zip(step.weights(), before, strict=True))


# ------------------------------------------------------------------ several networks


def test_ensemble_attacks_each_of_its_networks():
    sources = (network(1).eval(), network(2).eval())
    step, batch = step_for(), batch_of()
    recipe = Ensemble(sources, STEPS)
    drawn = []
    for i in range(40):
        now = replace(step, index=i)
        source = recipe.drawn(now)
        drawn.append(source)
        if i < 6:
            expected = now.attack(batch, STEPS, model=source)
            assert torch.equal(recipe.craft(now, batch).adversarial, expected)
    counts = [sum(d is s for d in drawn) for s in (*sources, None)]
    assert sum(counts) == 40
    assert min(counts) >= 6


def test_ensemble_without_sources_is_mixed_training():
    assert_same(Ensemble(attack=STEPS), Mixed(attack=STEPS))


# ------------------------------------------------------------------ labels, options


def test_mixed_labels_reach_the_loss():
    """CutMix's two labels and label smoothing count in every recipe that uses cross-entropy."""
    step, plain = step_for(net=network(batch_norm=False)), batch_of()
    other = (plain.y + 1) % 3
    both = replace(plain, y_other=other, share=torch.full((8,), 0.7))
    for recipe in (CLEAN, TRADES(beta=0), Mixed(clean=1)):
        parts = [
            value(recipe.loss(step, Batch(plain.x, y, plain.ids, plain.is_extra)))
            for y in (plain.y, other)
        ]
        mixed = value(recipe.loss(step, both))
        assert mixed == pytest.approx(0.7 * parts[0] + 0.3 * parts[1], rel=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TRADES(beta=-1),
        lambda: MART(beta=-1),
        lambda: Mixed(clean=1.5),
        lambda: FGSMRS(step_size=-1),
        lambda: AWP(gamma=-0.1),
        lambda: Free(m=0),
        lambda: MSD(steps=0),
        lambda: SmoothAdv(draws=0),
    ],
)
def test_impossible_options_are_told(build):
    with pytest.raises(PlanError, match="allowed is a number"):
        build()


def test_a_collapsed_single_step_has_somewhere_to_go():
    for recipe in (FGSMRS(), NFGSM(), Free()):
        assert recipe.card.is_single_step
        assert isinstance(recipe.safer(), PGDTraining)
    stronger = GradAlign(weight=0.2).safer()
    assert isinstance(stronger, GradAlign)
    assert stronger.weight == 0.4
    assert isinstance(stronger.safer(), PGDTraining)
    assert AWP(FGSMRS()).safer() == AWP(FGSMRS().safer())


def test_small_balls_need_a_ball():
    from holdfast.defenses._steps import scaled

    assert scaled(Ball("linf", 0.3), 0.5) == Ball("linf", 0.15)
