"""What other libraries got wrong in their attacks must hold here: one test each."""

import math

import pytest
import torch
from torch import nn

from holdfast import APGD, FGSM, PGD, CarliniWagner, Model, Square
from holdfast.attacks.apgd import windows
from holdfast.attacks.base import Answer
from holdfast.attacks.sparse_rs import SparseRS
from holdfast.contracts import drive, pose
from holdfast.contracts._toys import Affine, Net, inputs
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


def answers(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def pixels(n=6):
    """Inputs whose every coordinate is 0 or 1."""
    return inputs(1, n).round()


def test_apgd_takes_a_hundred_steps_by_default():
    assert APGD().steps == 100
    assert APGD().max_queries == 101


def test_apgd_checks_at_the_papers_steps():
    ends = [step for step, length in enumerate(windows(100)) if length]
    assert ends == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_starts_with_a_step_of_twice_the_radius(norm):
    model, x = Net(8, 3), inputs(1, 4)
    problem = pose(model, x, answers(model, x), Ball(norm, 0.01))
    assert torch.equal(APGD().init(problem).step_size, 2 * problem.allowed.radius)


def test_apgd_counts_no_increase_where_the_loss_only_falls():
    """The reference compares the first step with a loss of zero."""
    model, x = Net(8, 3), inputs(1, 2)
    state = APGD(steps=10).init(pose(model, x, answers(model, x), Ball("linf", 0.1)))
    for loss in (-1.0, -2.0):
        answer = Answer(torch.zeros(2, 3), torch.full((2,), loss), torch.ones_like(x))
        state = APGD(steps=10).tell(state, answer)
    assert state.n_increases.tolist() == [0, 0]


def test_a_run_is_judged_at_every_step_not_at_the_last_alone():
    """A step that jumps back and forth over the only adversarial inputs ends where it began."""

    class Slit(nn.Module):
        def forward(self, x):
            u = 0.05 - (x[:, 0] - 0.6).abs()
            return torch.stack([-u, u], 1)

    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    attack = PGD(steps=4, step_size=0.12, random_start=False)
    trace = drive(attack, Slit(), pose(Slit(), x, y, Ball("linf", 0.3)))
    assert trace.margins[-1] < 0 < trace.margins.max()
    assert answers(Slit(), attack(Slit(), x, y, "linf:0.3")).item() == 1


def test_carlini_wagner_moves_pixels_at_the_ends_of_the_domain():
    model, x = Affine(8, 2, seed=3), pixels()
    y = answers(model, x)
    x_adv = CarliniWagner(steps=100)(model, x, y, f"l2:{math.sqrt(8)}")
    assert (answers(model, x_adv) != y).all()


def test_carlini_wagner_works_where_all_scores_are_negative():
    net, x = Affine(8, 2, seed=3), inputs(1, 6)
    y = answers(net, x)

    def log_softmax(x):
        return net(x).log_softmax(1) - 5.0

    x_adv = CarliniWagner(steps=100)(log_softmax, x, y, f"l2:{math.sqrt(8)}")
    assert (answers(net, x_adv) != y).all()


def test_the_l2_projection_scales_the_change_not_the_point():
    x = torch.zeros(2, 2)
    ball = Ball("l2", 2.0).bind(x, Domain(-9.0, 9.0))
    inside, outside = torch.tensor([[0.1, 0.0], [3.0, 4.0]]).split(1)
    projected = ball.project(torch.cat([inside, outside]))
    assert torch.allclose(projected, torch.tensor([[0.1, 0.0], [1.2, 1.6]]))


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=10), APGD(steps=10), Square(queries=30)])
def test_any_domain_can_be_attacked(attack):
    net = Net(8, 3)
    model, x = Model(lambda z: net((z + 1) / 2), domain=(-1, 1)), 2 * inputs(1, 6) - 1
    x_adv = attack(model, x, answers(net, (x + 1) / 2), "linf:0.6")
    assert x_adv.min() < 0  # not cut at zero
    assert x_adv.min() >= -1
    assert x_adv.max() <= 1


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("n_targets", [0, 9])
def test_the_ratio_loss_is_defined_for_few_classes(k, n_targets):
    model, x = Net(8, k, seed=5), inputs(6, 6)
    y = answers(model, x)
    x_adv = APGD(loss="dlr", n_targets=n_targets, steps=20)(model, x, y, "linf:0.5")
    assert (answers(model, x_adv) != y).any()


@pytest.mark.parametrize("shape", [(1, 5, 9), (3, 9, 4)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_takes_images_that_are_not_square(shape, norm):
    x = inputs(7, 3, shape)
    model = Net(math.prod(shape), 2, seed=8)
    x_adv = Square(queries=40)(model, x, answers(model, x), f"{norm}:0.2", stop="budget")
    assert x_adv.shape == x.shape


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5", "l1:2", "l0:6"])
def test_each_sample_has_windows_and_places_of_its_own(threat):
    """Elsewhere one window, or one rank in the list of places, is drawn for the whole batch."""
    model, x = Net(64, 2, seed=8), inputs(7, 1, (1, 8, 8)).expand(4, 1, 8, 8).clone()
    norm, _, eps = threat.partition(":")
    attack = SparseRS(queries=9) if norm == "l0" else Square(queries=9)
    trace = drive(attack, model, pose(model, x, answers(model, x), Ball(norm, float(eps))))
    paths = [trace.path(job)[1:] for job in range(4)]
    assert all(not torch.equal(paths[0], path) for path in paths[1:])


def test_a_targeted_attack_aims_at_the_class_given():
    """Elsewhere "targeted" is a loss; the sample then counts as broken by any wrong answer."""
    model, x = Net(8, 4, seed=9), inputs(10, 8)
    y = answers(model, x)
    target = (y + 2) % 4
    x_adv = APGD(steps=40)(model, x, y, "linf:0.5", targets=target)
    moved = answers(model, x_adv)
    assert (moved == target).any()
    untouched = answers(model, APGD(steps=40)(model, x, y, "linf:0", targets=target))
    assert torch.equal(untouched, y)


def test_l1_apgd_warms_up_in_larger_balls_and_ends_in_the_allowed_one():
    model, x = Net(8, 3), inputs(1, 4)
    problem = pose(model, x, answers(model, x), Ball("l1", 0.4))
    trace = drive(APGD(steps=20, widening=True), model, problem)
    sizes = [(trace.path(0)[i] - x[0]).abs().sum().item() / 0.4 for i in range(23)]
    assert max(sizes[:7]) > 2.0  # six steps within three radii
    assert max(sizes[7:14]) <= 2.0 + 1e-5  # six within two
    assert max(sizes[14:]) <= 1.0 + 1e-5  # eight within the threat


def test_what_l1_apgd_meets_in_larger_balls_counts_for_nothing():
    model, x = Net(8, 3), inputs(1, 12)
    y = answers(model, x)
    x_adv = APGD(steps=20, widening=True)(model, x, y, "l1:0.05")
    assert ((x_adv - x).abs().flatten(1).sum(1) <= 0.05 + 1e-6).all()


@pytest.mark.parametrize("name", ["autoattack", "autoattack_plus"])
def test_the_preset_has_the_published_numbers_of_steps_targets_and_queries(name):
    """Elsewhere a thing of this name runs 10 steps, or DeepFool for FAB."""
    from holdfast.engine.cascade import fitting
    from holdfast.plan import load_cascade
    from holdfast.threat import Access

    steps, left_out = fitting(load_cascade(name), "linf", Access.GRADIENTS)
    attacks = [(s.attack.card.name, s.attack.options()) for s in steps]
    assert not left_out
    assert {o["steps"] for n, o in attacks if n in ("apgd", "fab")} == {100}
    assert [o["queries"] for n, o in attacks if n == "square"] == [5000]
    aims = [(n, o["n_targets"]) for n, o in attacks if o.get("n_targets")]
    assert aims == [("apgd", 9), ("fab", 9)]
    if name == "autoattack":
        assert [n for n, _ in attacks] == ["apgd", "apgd", "fab", "square"]


def test_the_preset_in_l1_has_five_restarts_five_targets_and_square():
    from holdfast.engine.cascade import fitting
    from holdfast.plan import load_cascade
    from holdfast.threat import Access

    steps, left_out = fitting(load_cascade("autoattack"), "l1", Access.GRADIENTS)
    attacks = [(s.attack.card.name, s.attack.options()) for s in steps]
    assert not left_out
    assert [n for n, _ in attacks] == ["apgd", "apgd", "fab", "square"]
    assert attacks[0][1]["restarts"] == 5
    assert attacks[1][1]["n_targets"] == 5
    assert all(o["widening"] for _, o in attacks[:2])
    assert (attacks[3][1]["queries"], attacks[3][1]["p_init"]) == (5000, 0.8)
    assert not attacks[3][1]["rescale_schedule"]


@pytest.mark.parametrize("attack", [APGD, PGD])
def test_a_loss_is_the_one_that_is_named(attack):
    """Elsewhere a misspelt name runs another loss in silence."""
    with pytest.raises(PlanError, match="p_margin"):
        attack(loss="p_margin")
    model, x = Net(8, 4, seed=11), inputs(12, 4)
    problem = pose(model, x, answers(model, x), Ball("linf", 0.1))
    functions = {}
    for loss in ("ce", "dlr", "margin"):
        objective = attack(loss=loss).ask(attack(loss=loss).init(problem)).objective
        functions[loss] = objective.function(problem.logits, *objective.rows)
    assert not torch.allclose(functions["ce"], functions["margin"])
    assert not torch.allclose(functions["dlr"], functions["margin"])
