"""Which class is nearest, how many runs a sample gets, and what each question costs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from holdfast import Model
from holdfast.attacks.base import Answer
from holdfast.attacks.malt import CLIMB, LOOK, MALT, RANK, class_gaps, linear_distances, share_left
from holdfast.contracts import drive, pose
from holdfast.contracts._toys import Affine, Flat, Net, inputs
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain


def answers(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def test_the_distance_is_the_gap_over_the_dual_norm_of_an_affine_model():
    model, x = Affine(8, 4, seed=2), 0.3 + 0.4 * inputs(1, 5)
    y = answers(model, x)
    problem = pose(model, x, y, Ball("linf", 0.1), domain=Domain(-9.0, 9.0))
    state = MALT().init(problem)
    weight = model.weight.detach().T.float()
    gaps = class_gaps(model(x).detach(), y, state.classes)
    rows = weight[state.classes] - weight[y][:, None]
    found, _ = linear_distances(problem.allowed, Answer(model(x).detach(), gaps, rows))
    expected = -gaps / (0.1 * rows.abs().sum(2))
    assert torch.allclose(found, expected, rtol=1e-4)


class Decoy(nn.Module):
    """Class 1 is the likeliest wrong one and cannot be reached; class 2 can."""

    def forward(self, x):
        push = x.sum(1) - 4.0
        return torch.stack([0 * push + 1.0, 0.9 + 0.001 * push, 0.5 + push], 1)


def test_it_goes_for_the_class_that_can_be_reached_not_for_the_likeliest():
    x, y = torch.full((1, 8), 0.5), torch.tensor([0])
    problem = pose(Decoy(), x, y, Ball("linf", 0.1))
    attack = MALT(steps=2, runs=1)
    state = attack.init(problem)
    assert state.classes[0, 0] == 1  # the likeliest first, until the gradients are known
    points = x.clone().requires_grad_()
    gaps = class_gaps(Decoy()(points), y, state.classes)
    gradients = torch.stack(
        [torch.autograd.grad(g, points, retain_graph=True)[0] for g in gaps[0]], 1
    )
    state = attack.tell(state, Answer(Decoy()(x), gaps.detach(), gradients))
    assert state.aim.item() == 2
    assert state.n_near.item() == 1  # the other is too far for a run
    assert Decoy()(state.x).argmax(1).item() == 2  # the linear model's best point does it


def test_a_sample_without_hope_gets_one_run_and_one_near_the_edge_all():
    attack = MALT(steps=3, runs=6, effort=1.0)
    x = inputs(1, 4)
    flat = drive(attack, Flat(0.0), pose(Flat(0.0), x, answers(Flat(0.0), x), Ball("linf", 0.1)))
    assert flat.n_queries().tolist() == [1 + 4] * 4  # the ranking, three steps and the end
    share = share_left(torch.tensor([-0.3, -1.0]), torch.tensor([-1.0, -1.0]))
    assert share.tolist() == [0.30000001192092896, 1.0]
    runs = [sum(j == 0 or j * left < 1.0 for j in range(6)) for left in share.tolist()]
    assert runs == [4, 1]


def test_gradients_are_paid_where_they_are_asked_for():
    x = inputs(1, 1)
    y = answers(Flat(0.0), x)
    attack = MALT(steps=3, runs=1)
    problem = pose(Flat(0.0), x, y, Ball("linf", 0.1))
    state, kinds = attack.init(problem), []
    while not state.finished.all():
        kinds.append(int(attack.phase(state)))
        query = attack.ask(state)
        width = query.n_backward
        assert width == {RANK: problem.logits.shape[1] - 1, CLIMB: 1, LOOK: 0}[kinds[-1]]
        shape = (1, width, *x.shape[1:]) if kinds[-1] == RANK else x.shape
        answer = Answer(problem.logits, x.new_zeros(1, max(1, width)), x.new_zeros(shape))
        state = attack.tell(state, answer)
    assert kinds == [RANK, CLIMB, CLIMB, CLIMB, LOOK]


def test_of_a_thousand_classes_only_candidates_are_looked_at():
    model, x = Net(8, 1000), inputs(1, 3)
    query = MALT().ask(MALT().init(pose(model, x, answers(model, x), Ball("linf", 0.1))))
    assert query.n_backward == 20


def test_a_target_given_is_the_only_aim():
    model, x = Net(8, 4, seed=9), inputs(10, 6)
    y = answers(model, x)
    target = (y + 2) % 4
    state = MALT().init(pose(model, x, y, Ball("linf", 0.1), target=target))
    assert (state.classes == target[:, None]).all()
    assert (MALT().phase(state) == CLIMB).all()
    moved = answers(model, MALT(steps=20)(model, x, y, "linf:0.5", targets=target))
    assert (moved == target).any()


def test_from_a_start_classes_are_ranked_only_after_the_first_run():
    x, y = torch.full((1, 8), 0.5), torch.tensor([0])
    start = x - 0.05
    attack = MALT(steps=2, runs=3, effort=9.0)
    problem = replace(pose(Decoy(), x, y, Ball("linf", 0.1)), start=start)
    state, kinds, points, aims = attack.init(problem), [], [], []
    while not bool(state.finished.all()):
        kinds.append(int(state.kind[0]))
        query = attack.ask(state)
        points.append(query.points)
        state = attack.tell(state, answered(query))
        aims.append(int(state.aim[0]))
    assert kinds == [CLIMB, CLIMB, LOOK, RANK, CLIMB, CLIMB, LOOK, CLIMB, CLIMB, LOOK]
    assert torch.equal(points[0], start)
    assert torch.equal(points[3], x)
    assert aims[:3] == [-1] * 3  # at any class from the start
    assert aims[3] == 2  # then at the nearest
    assert len(kinds) == attack.max_queries


def test_a_target_needs_no_ranking_from_a_start_either():
    x, y = torch.full((1, 8), 0.5), torch.tensor([0])
    attack = MALT(steps=1, runs=2, effort=9.0)
    problem = pose(Decoy(), x, y, Ball("linf", 0.1))
    problem = replace(problem, start=x - 0.05, target=torch.tensor([1]))
    state, kinds = attack.init(problem), []
    while not bool(state.finished.all()):
        kinds.append(int(state.kind[0]))
        assert state.aim.item() == 1
        state = attack.tell(state, answered(attack.ask(state)))
    assert kinds == [CLIMB, LOOK, CLIMB, LOOK]


def answered(query):
    model = Model(Decoy())
    with model.session():
        model.recognise(query.points)
        return model.answer([query])[0]
