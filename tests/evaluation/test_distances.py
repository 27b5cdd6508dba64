"""Smallest changes: closed forms, the budget, the curve, the same bits in any batch."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks.deepfool import DeepFool
from holdfast.contracts._geometry import flat, smallest_radius
from holdfast.contracts._toys import Affine, Net, inputs
from holdfast.errors import DataError, PlanError
from holdfast.evaluation._nearest import Search
from holdfast.evaluation.distances import MinimalDistances, minimal_distances, portfolio
from holdfast.model import Model

NORMS = ["linf", "l2", "l1", "l0"]


def answers(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def exact(model, x, y, norm):
    """The distance to the hyperplane within the box, for two classes."""
    slope = model.weight.detach().numpy().T
    with torch.no_grad():
        z = model(x).double().numpy()
    found = []
    for i, label in enumerate(y.tolist()):
        needed = z[i, label] - z[i, 1 - label]
        found.append(smallest_radius(slope[1 - label] - slope[label], flat(x)[i], norm, needed))
    return np.array(found)


@pytest.mark.parametrize("norm", NORMS)
def test_distance_to_a_hyperplane(norm):
    model, x = Affine(8, 2, seed=60), inputs(61, 8)
    y = answers(model, x)
    found = minimal_distances(model, x, y, norm=norm, budget=300)
    best = exact(model, x, y, norm)
    assert (found.distance.numpy() >= best * (1 - 1e-5)).all()
    assert found.distance.sum() <= 1.02 * best.sum() + (norm == "l0")
    assert (answers(model, found.x_adv) != y).all()
    assert (found.forward + found.backward <= 300).all()


def test_wrong_answers_are_at_no_distance_and_the_unreachable_at_an_infinite_one():
    class Deaf(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1)[:, 0] * 0 + 1, x.flatten(1).sum(1) * 0], 1)

    x, y = inputs(62, 3), torch.tensor([0, 1, 0])
    found = minimal_distances(Deaf(), x, y, budget=60)
    assert found.distance.tolist() == [math.inf, 0.0, math.inf]
    assert found.found_by == ("", "clean", "")
    assert torch.equal(found.x_adv, x)
    assert math.isinf(found.median)
    assert found.to_dict()["median"] is None


@pytest.mark.parametrize("norm", ["l2", "l0"])
def test_neither_batch_nor_order_nor_neighbours_matter(norm):
    model, x = Net(8, 4, seed=63), inputs(64, 6)
    y = answers(model, x)
    whole = minimal_distances(model, x, y, norm=norm, budget=80)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = minimal_distances(model, x[order], y[order], norm=norm, budget=80, batch_size=4)
    assert torch.equal(whole.x_adv[order], other.x_adv)
    assert torch.equal(whole.distance[order], other.distance)
    assert torch.equal(whole.forward[order], other.forward)


@pytest.mark.parametrize("k", [1, 2, 3, 1000])
def test_any_number_of_classes_and_any_domain(k):
    net, x = Net(8, max(k, 2), seed=65), inputs(66, 4)

    class Head(nn.Module):
        def forward(self, x):
            z = net(x / 255)
            return z[:, 1] - z[:, 0] if k == 1 else z

    y = answers(net, x)
    found = minimal_distances(Model(Head(), domain=(0, 255)), x * 255, y, budget=100)
    assert found.distance.isfinite().all()
    assert (answers(net, found.x_adv / 255) != y).all()
    assert float(found.x_adv.max()) > 1


def test_targets_are_reached():
    model, x = Affine(8, 4, seed=67), inputs(68, 6)
    y = answers(model, x)
    target = (y + 1) % 4
    found = minimal_distances(model, x, y, targets=target, budget=200)
    anywhere = minimal_distances(model, x, y, budget=200)
    reached = found.distance.isfinite()
    assert reached.sum() >= 5
    assert (answers(model, found.x_adv)[reached] == target[reached]).all()
    assert (found.distance >= anywhere.distance * (1 - 1e-3)).all()


def test_distances_shrink_with_more_passes_and_polish_pays():
    model, x = Net(8, 4, seed=69), inputs(70, 8)
    y = answers(model, x)
    few = minimal_distances(model, x, y, budget=60)
    many = minimal_distances(model, x, y, budget=400)
    assert many.distance.sum() <= few.distance.sum()
    plain = DeepFool(overshoot=0.5)(model, x, y, "l2:2.8", stop="budget")
    polished = minimal_distances(model, x, y, attacks=[DeepFool(overshoot=0.5)], budget=600)
    before = (plain - x).double().norm(dim=1)
    assert (polished.distance < 0.95 * before).all()
    assert set(polished.found_by) == {"deepfool"}


def test_gradients_are_asked_after_the_likeliest_classes_in_l2(monkeypatch):
    asked = []
    monkeypatch.setattr(Search, "look", lambda _, n_tried, size: asked.append(n_tried))
    model, x = Net(8, 4, seed=69), inputs(70, 2)
    for norm in ("linf", "l2"):
        minimal_distances(model, x, answers(model, x), norm=norm, budget=200)
    assert asked == [2]


def test_the_curve_is_the_distances():
    distance = torch.tensor([0.0, 0.2, 0.1, math.inf, 0.2], dtype=torch.float64)
    zero = torch.zeros(5, dtype=torch.int64)
    found = MinimalDistances("l2", distance, torch.zeros(5, 1), ("a",) * 5, zero, zero)
    eps, accuracy = found.curve()
    assert eps.tolist() == [0.0, 0.1, 0.2]
    np.testing.assert_allclose(accuracy, [0.8, 0.6, 0.2])
    for radius, value in zip(eps, accuracy, strict=True):
        assert found.robust_accuracy(radius).value == pytest.approx(value)
    assert found.median == 0.2
    four = MinimalDistances("l2", distance[:4], torch.zeros(4, 1), ("a",) * 4, zero[:4], zero[:4])
    assert four.median == 0.1  # the distance that half of the samples do not exceed


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("budget", [50, 190, 1000])
@pytest.mark.parametrize("n_wrong", [1, 9])
def test_the_default_attacks_fit_the_budget(norm, budget, n_wrong):
    turns = portfolio(norm, budget, n_wrong)
    everyones = [turn for turn in turns if turn.begins in {"x", "afar", "nearest"}]
    assert sum(turn.passes for turn in everyones) <= budget
    for turn in turns:
        card, jobs = turn.attack.card, max(1, turn.attack.option("n_targets", 0))
        assert card.is_minimal
        assert norm in card.norms
        assert jobs <= n_wrong
        assert turn.attack.max_queries * jobs <= turn.passes


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"norm": "l7"}, PlanError, "l7"),
        ({"budget": 3}, PlanError, "40"),
        ({"attacks": ["pgd"]}, PlanError, "ddn"),
        ({"attacks": ["sigma_zero"]}, PlanError, "sigma_zero"),
        ({"attacks": []}, PlanError, "attack"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, DataError, "targets"),
    ],
)
def test_bad_input_is_told(options, error, says):
    x = inputs(71, 2)
    with pytest.raises(error, match=says):
        minimal_distances(Net(8, 3), x, torch.tensor([0, 1]), **options)
