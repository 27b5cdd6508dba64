"""FAB: the reference's step, written once more by hand; starts; more classes than are looked at."""

from dataclasses import replace

import pytest
import torch

from holdfast import contracts
from holdfast.attacks._hyperplane import shortest
from holdfast.attacks.base import Answer
from holdfast.attacks.fab import FAB
from holdfast.contracts._drive import with_seed
from holdfast.contracts._toys import Affine, Net, inputs
from holdfast.errors import PlanError
from holdfast.perturbations.ball import Ball


def posed(model, norm="l2", n=6, eps=2.0):
    x = inputs(1, n)
    with torch.no_grad():
        return contracts.pose(model, x, model(x).argmax(1), Ball(norm, eps))


def distances(trace, norm):
    """The smallest change of each job that fools."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    d = trace.points - trace.problem.x[trace.jobs]
    size = torch.linalg.vector_norm(d.flatten(1).double(), order, dim=1)
    size = torch.where(trace.margins > 0, size, torch.inf)
    start = size.new_full((len(trace.problem.y),), torch.inf)
    return start.scatter_reduce(0, trace.jobs, size, "amin")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_step_is_the_papers(norm):
    """Algorithm 1 from the first two answers, with the projections alone taken over."""
    model, problem = Net(8, 3), posed(Net(8, 3), norm)
    trace = contracts.drive(FAB(steps=2), model, problem)
    path = trace.path(0)
    x0, y = problem.x[:1], problem.y[0]
    assert torch.equal(path[0], x0[0])
    point = x0.clone().requires_grad_()
    z = model(point)[0]
    others = [c for c in range(3) if c != y]
    f = [(z[c] - z[y]).item() for c in others]
    g = [torch.autograd.grad(z[c] - z[y], point, retain_graph=True)[0] for c in others]
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    ratio = [abs(a) / float(torch.linalg.vector_norm(b, dual)) for a, b in zip(f, g, strict=True)]
    best = ratio.index(min(ratio))
    box = (torch.tensor(0.0), torch.tensor(1.0))
    d = shortest(norm, x0, g[best], torch.tensor([-f[best]]), box)
    # at x itself both projections are the same, whatever their weights
    torch.testing.assert_close(path[1], (x0 + 1.05 * d)[0].clamp(0, 1))
    if trace.margins[trace.jobs == 0][1] > 0:
        torch.testing.assert_close(path[2], (x0 + 0.9 * (path[1] - x0))[0])


def test_a_point_that_fools_is_drawn_back_and_does_not_count_as_a_step():
    model, problem = Affine(8, 2), posed(Affine(8, 2))
    trace = contracts.drive(FAB(steps=5), model, problem)
    for job in range(6):
        path, won = trace.path(job), trace.margins[trace.jobs == job] > 0
        for i in range(1, len(path) - 1):
            # the first point and those drawn back are no candidates
            if won[i] and not torch.allclose(
                path[i], problem.x[job] + 0.9 * (path[i - 1] - problem.x[job])
            ):
                back = problem.x[job] + 0.9 * (path[i] - problem.x[job])
                torch.testing.assert_close(path[i + 1], back)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_more_starts_find_no_longer_ways(norm):
    model, problem = Net(8, 4, seed=3), posed(Net(8, 4, seed=3), norm)
    one = distances(contracts.drive(FAB(steps=10), model, problem), norm)
    trace = contracts.drive(FAB(steps=10, starts=4), model, problem)
    four = distances(trace, norm)
    assert (four <= one).all()
    assert (four < one).any()
    other = contracts.drive(FAB(steps=10, starts=4), model, with_seed(problem, 1))
    assert trace.points.shape != other.points.shape or not torch.equal(trace.points, other.points)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_thrift_takes_one_query_a_step_and_finds_about_the_same(norm):
    """The plane of the point that fooled, moved to the one drawn back; on a flat model exactly."""
    model, problem = Affine(8, 2), posed(Affine(8, 2), norm)
    plain = distances(contracts.drive(FAB(steps=30), model, problem), norm)
    trace = contracts.drive(FAB(steps=30, is_thrifty=True), model, problem)
    assert int(trace.n_queries().max()) <= 31
    torch.testing.assert_close(distances(trace, norm), plain, rtol=1e-2, atol=0)


def test_a_class_that_is_not_aimed_at_still_counts():
    """A run towards one class, where any wrong answer will do, draws back from any of them."""
    model, problem = Net(8, 4, seed=3), posed(Net(8, 4, seed=3))
    target = problem.logits.argsort(1)[:, 0]
    any_wrong = replace(problem, target=target, goal=torch.full_like(target, -1))
    strict = replace(problem, target=target)
    attack = FAB(steps=30)
    paths = [contracts.drive(attack, model, p).points for p in (any_wrong, strict)]
    assert paths[0].shape != paths[1].shape or not torch.equal(*paths)


def test_a_run_without_gradients_ends_at_once():
    problem = posed(Net(8, 3))
    attack = FAB()
    state = attack.init(problem)
    query = attack.ask(state)
    flat = Answer(problem.logits, query.points.new_zeros(6, 2), query.points.new_zeros(6, 2, 8))
    assert attack.tell(state, flat).finished.all()


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"starts": 0}, {"n_classes": 0}, {"eta": 0.5}, {"n_targets": -1}]
)
def test_options_are_checked(options):
    with pytest.raises(PlanError, match=next(iter(options))):
        FAB(**options)
