"""Carlini-Wagner: the distance to a hyperplane, every domain, the known defects, the search."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks._losses import goal_margin
from holdfast.attacks.base import Answer, Problem
from holdfast.attacks.carlini_wagner import CarliniWagner
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball
from holdfast.rows import take
from holdfast.threat import Domain


class Affine(nn.Module):
    """Logits ``W x + b``."""

    def __init__(self, d, k=2, seed=0, log_softmax=False):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(k, d, generator=g)
        self.bias = torch.zeros(k)
        self.log_softmax = log_softmax

    def forward(self, x):
        z = x.flatten(1) @ self.weight.T + self.bias
        return z.log_softmax(1) if self.log_softmax else z


def pose(model, x, domain=None, eps=1e4, target=None):
    domain = domain or Domain()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    target = torch.full_like(y, -1) if target is None else (y + target) % logits.shape[1]
    allowed = Ball("l2", eps).bind(x, domain)
    return Problem(x, y, target, allowed, Rng.from_seed(0, len(x)), logits)


def smallest(attack, model, problem):
    """The least distance that reached the goal, per row; and the points of every step."""
    state = attack.init(problem)
    best, points = torch.full((len(problem.x),), torch.inf, dtype=torch.float64), []
    for _ in range(attack.max_queries):
        query = attack.ask(state)
        point = query.points.detach().requires_grad_()
        logits = model(point)
        loss = query.objective.function(logits, *query.objective.rows)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        point = point.detach()
        won = goal_margin(logits.detach(), problem.y, problem.target) > 0
        distance = problem.allowed.distance(point)
        best = torch.where(won & ~state.finished, torch.minimum(best, distance), best)
        points.append(point)
        state = attack.tell(state, Answer(logits.detach(), loss.detach(), gradient))
        if bool(state.finished.all()):
            break
    assert state.finished.all()
    return best, points


def to_hyperplane(model, problem):
    """|z_1 - z_0| / ||w_1 - w_0||, where the box does not come between."""
    w = model.weight[1] - model.weight[0]
    gap = problem.logits[:, 1] - problem.logits[:, 0]
    return gap.abs().double() / w.double().norm()


@pytest.mark.parametrize("domain", [Domain(0, 1), Domain(-1, 1), Domain(0, 255)])
@pytest.mark.parametrize(
    ("steps", "share"), [(150, 1.5), pytest.param(1000, 1.03, marks=pytest.mark.slow)]
)
def test_distance_to_a_hyperplane(domain, steps, share):
    """The paper's 1,000 steps come within 3 % on average; few steps come near."""
    model = Affine(20)
    x = domain.lower + domain.width * (0.4 + 0.2 * Rng.from_seed(7, 8).uniform((20,)))
    problem = pose(model, x, domain)
    best, points = smallest(CarliniWagner(steps=steps), model, problem)
    expected = to_hyperplane(model, problem)
    assert (best >= expected * (1 - 1e-5)).all()
    assert best.sum() <= share * expected.sum()
    for point in points:
        assert ((point >= domain.lower) & (point <= domain.upper)).all()


def test_binary_images_can_be_changed():
    """Pixels at 0 and 1 start at a finite w with a gradient that counts as progress."""
    x = (Rng.from_seed(2, 6).uniform((1, 6, 6)) > 0.5).float()
    model = Affine(36, k=3)
    problem = pose(model, x)
    state = CarliniWagner().init(problem)
    assert torch.isfinite(state.w).all()
    best, _ = smallest(CarliniWagner(steps=60), model, problem)
    assert torch.isfinite(best).all()


def test_log_softmax_heads_are_no_hiding_place():
    x = Rng.from_seed(3, 6).uniform((12,))
    plain, hidden = Affine(12, k=4), Affine(12, k=4, log_softmax=True)
    attack = CarliniWagner(steps=60)
    expected, _ = smallest(attack, plain, pose(plain, x))
    best, _ = smallest(attack, hidden, pose(hidden, x))
    torch.testing.assert_close(best, expected, rtol=0.05, atol=1e-3)


def test_targets():
    model, x = Affine(15, k=4), Rng.from_seed(4, 6).uniform((15,))
    problem = pose(model, x, target=2)
    best, _ = smallest(CarliniWagner(steps=60), model, problem)
    untargeted, _ = smallest(CarliniWagner(steps=60), model, pose(model, x))
    assert torch.isfinite(best).all()
    assert (best >= untargeted - 0.02).all()


def test_confidence_asks_for_a_margin():
    model, x = Affine(20), 0.4 + 0.2 * Rng.from_seed(5, 6).uniform((20,))
    problem = pose(model, x)
    near, _ = smallest(CarliniWagner(steps=60), model, problem)
    state = CarliniWagner(steps=60, confidence=2.0).init(problem)
    attack = CarliniWagner(steps=60, confidence=2.0)
    margins = torch.full((6,), -torch.inf)
    while not bool(state.finished.all()):
        query = attack.ask(state)
        point = query.points.requires_grad_()
        loss = query.objective.function(model(point), *query.objective.rows)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        margins = margins.maximum(loss.detach())
        state = attack.tell(state, Answer(loss.detach()[:, None], loss.detach(), gradient))
    assert (margins >= 2.0).all()
    assert torch.isfinite(near).all()
    # the last c that succeeded bounds the search from above
    assert torch.isfinite(state.weight.upper).all()
    assert (state.weight.lower <= state.weight.upper).all()


def test_rows_are_their_own():
    model, x = Affine(13, k=3), Rng.from_seed(6, 5).uniform((13,))
    problem = pose(model, x)
    attack = CarliniWagner(steps=20, searches=3)
    _, together = smallest(attack, model, problem)
    _, alone = smallest(attack, model, take(problem, torch.tensor([3])))
    for a, b in zip(together, alone, strict=False):
        torch.testing.assert_close(b, a[3:4], rtol=1e-5, atol=1e-6)


def test_a_search_without_progress_ends_early():
    class Deaf(Affine):
        def forward(self, x):
            return super().forward(x) * 0 + torch.tensor([1.0, 0.0])

    x = torch.full((2, 10), 0.5)
    _, points = smallest(CarliniWagner(steps=100, searches=4), Deaf(10), pose(Deaf(10), x))
    assert len(points) <= 4 * 20


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"searches": 0}, {"confidence": -1.0}, {"step_size": 0.0}]
)
def test_options_are_checked(options):
    with pytest.raises(PlanError, match=next(iter(options))):
        CarliniWagner(**options)


def test_one_ball_through_the_engine():
    """A point inside the ball that fools ends the row; rows beyond it come back inside."""
    model, x = Affine(20), 0.4 + 0.2 * Rng.from_seed(7, 10).uniform((20,))
    problem = pose(model, x)
    distance = to_hyperplane(model, problem)
    eps = float(np.median(distance.numpy())) * 1.2
    x_adv = CarliniWagner(steps=200)(model, x, problem.y, f"l2:{eps}")
    assert pose(model, x, eps=eps).allowed.contains(x_adv).all()
    fooled = model(x_adv).argmax(1) != problem.y
    assert fooled[distance < 0.85 * eps].all()
    assert not fooled[distance > eps].any()
