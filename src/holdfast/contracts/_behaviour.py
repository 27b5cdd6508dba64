"""Contracts about conduct: where an attack asks, what it depends on, when it ends.

Each takes an attack and a norm, and raises ``ContractViolation`` with what it saw.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import torch
from torch import Tensor

from holdfast import rows
from holdfast.attacks.base import Answer, Attack, Problem
from holdfast.contracts._drive import Classifier, Trace, drive, pose, reply, with_seed
from holdfast.contracts._geometry import excess
from holdfast.contracts._toys import RADII, SHAPE, Affine, Flat, Net, inputs
from holdfast.contracts._violation import ContractViolation, require
from holdfast.engine.random import Rng
from holdfast.perturbations.ball import Ball
from holdfast.threat import Access, Domain

N_JOBS = 5
N_FORKS = 6


def stays_in_the_set(attack: Attack, norm: str) -> None:
    """Every asked point lies in the box, and in the ball unless the smallest change is sought."""
    for box in ((0.0, 1.0), (-3.0, 5.0)):
        width = box[1] - box[0]
        eps = RADII[norm] * (1.0 if norm == "l0" else width)
        model, domain = _rescaled(Net(8, 3), box), Domain(*box)
        x = box[0] + width * inputs(1, N_JOBS)
        problem = pose(model, x, _answers(model, x), Ball(norm, eps), domain=domain)
        trace = drive(attack, model, problem)
        limit = float("inf") if not attack.stays_inside else eps
        _require_inside(trace, norm, limit, box)


def keeps_the_type(attack: Attack, norm: str) -> None:
    """Points have the shape, dtype and device of the inputs."""
    for dtype in (torch.float32, torch.float64):
        problem = _problem(Net(8, 3), norm, dtype=dtype)
        for step in drive(attack, Net(8, 3), problem).steps:
            _require_alike(step.points, problem.x)


def leaves_its_inputs_alone(attack: Attack, norm: str) -> None:
    """Inputs, labels, logits and the allowed set hold the same bytes afterwards."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    before = _bytes(problem)
    drive(attack, model, problem)
    require(_bytes(problem) == before, "The problem's tensors were written to: copy, then change.")


def repeats_with_the_seed(attack: Attack, norm: str) -> None:
    """Same seed, same bytes; another seed differs where, and only where, the card says so."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    first = drive(attack, model, problem)
    _require_equal(first, drive(attack, model, problem), "a second run with the same seed")
    other = drive(attack, model, with_seed(problem, 1))
    differs = not _equal(first, other)
    says = "is" if attack.card.is_stochastic else "is not"
    require(
        differs == attack.card.is_stochastic,
        f"The card says that the attack {says} stochastic, but another seed "
        f"{'changes' if differs else 'does not change'} its points.",
    )


def draws_no_other_numbers(attack: Attack, norm: str) -> None:
    """Global random numbers of torch are neither used nor moved."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        first = drive(attack, model, problem)
        moved = not torch.equal(before, torch.get_rng_state())
        torch.rand(7)
        second = drive(attack, model, problem)
    require(not moved, "torch's global random state moved: use problem.rng.")
    _require_equal(first, second, "another global random state")


def stands_alone(attack: Attack, norm: str) -> None:
    """A job does the same alone, in another order, with other neighbours, entering later."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    together = drive(attack, model, problem)
    n = len(problem.y)
    for job in range(n):
        alone = drive(attack, model, rows.take(problem, torch.tensor([job])))
        _require_same_path(together.path(job), alone.path(0), job, "alone")
    backwards = drive(attack, model, rows.take(problem, torch.arange(n - 1, -1, -1)))
    late = drive(attack, model, problem, groups=[[3], [1, 4], [0], [2]])
    for job in range(n):
        _require_same_path(together.path(job), backwards.path(n - 1 - job), job, "in another order")
        _require_same_path(together.path(job), late.path(job), job, "beside jobs at other steps")


def survives_a_stop(attack: Attack, norm: str) -> None:
    """Rows taken out after any step, written down, read again and put back go on the same."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    plain = drive(attack, model, problem)
    _require_equal(plain, drive(attack, model, problem, handle=_stopped), "stops at every step")


def uses_the_last_answer(attack: Attack, norm: str) -> None:
    """What it asks next depends on what it was told last, at most steps."""
    model = Net(8, 3)
    problem = _problem(model, norm)
    state, differs = attack.init(problem), []
    for _ in range(N_FORKS):
        answer = reply(model, attack.ask(state))
        good, bad = (attack.tell(state, _bent(answer, problem.y, sign)) for sign in (1, -1))
        both = ~(good.finished | bad.finished)
        if not bool(both.any()):
            break
        after = [attack.ask(rows.take(fork, both)).points for fork in (good, bad)]
        differs.append(not torch.equal(*after))
        state = attack.tell(state, answer)
    require(
        2 * sum(differs) >= len(differs),
        f"At {differs.count(False)} of {len(differs)} steps the next points are the same whether "
        "the answer was good news or bad: is it one step behind?",
    )


def keeps_to_its_budget(attack: Attack, norm: str) -> None:
    """Every job finishes by itself within ``max_queries`` points, and says so row by row."""
    require(attack.max_queries >= 1, f"max_queries is {attack.max_queries}: at least 1 is needed.")

    def look(state: Any, _: int) -> Any:
        finished = state.finished
        is_mask = isinstance(finished, Tensor) and finished.dtype == torch.bool
        require(is_mask and finished.ndim == 1, f"`finished` is no bool mask of rows: {finished}")
        return state

    model = Net(8, 3)
    trace = drive(attack, model, _problem(model, norm), handle=look)
    require(bool((trace.n_queries() >= 1).all()), "A job ended without asking a single point.")


def takes_any_head(attack: Attack, norm: str) -> None:
    """Two, three, four and a thousand classes, with and without a target."""
    for k in (2, 3, 4, 1000):
        model = Net(8, k)
        x = inputs(2, 3)
        y = _answers(model, x)
        for target in (None, (y + 1) % k):
            what = f"{k} classes{'' if target is None else ' and a target'}"
            problem = pose(model, x, y, Ball(norm, RADII[norm]), target=target)
            trace = _without_crash(attack, model, problem, what)
            _require_finite(trace, what)


def takes_any_shape(attack: Attack, norm: str) -> None:
    """Vectors, matrices and channels of images that are not square."""
    for shape in ((1,), SHAPE, (4, 6), (1, 5, 7), (3, 6, 4)):
        x = inputs(3, 3, shape)
        model = Net(x[0].numel(), 3)
        eps = 1.0 if norm == "l0" else RADII[norm]
        problem = pose(model, x, _answers(model, x), Ball(norm, eps))
        trace = _without_crash(attack, model, problem, f"inputs of shape {shape}")
        _require_alike(trace.steps[-1].points, x)
        _require_inside(trace, norm, float("inf") if not attack.stays_inside else eps)


def survives_bad_gradients(attack: Attack, norm: str) -> None:
    """Gradients that are zero or NaN neither crash it nor drive it out of the set."""
    for gradient in (0.0, float("nan")):
        model = Flat(gradient)
        problem = _problem(model, norm)
        trace = _without_crash(attack, model, problem, f"gradients of {gradient}")
        _require_finite(trace, f"gradients of {gradient}")
        limit = float("inf") if not attack.stays_inside else RADII[norm]
        _require_inside(trace, norm, limit)


def does_nothing_without_room(attack: Attack, norm: str) -> None:
    """With eps = 0 every allowed point is the clean input."""
    model = Affine(8, 2)
    x = inputs(4, N_JOBS)
    trace = drive(attack, model, pose(model, x, _answers(model, x), Ball(norm, 0.0)))
    if not attack.card.is_minimal:
        moved = (trace.points != x[trace.jobs]).flatten(1).any(1)
        require(not bool(moved.any()), f"{int(moved.sum())} points differ from x though eps = 0.")


def has_an_honest_card(attack: Attack, norm: str) -> None:
    """The card's access is enough, and the options are written and read without loss."""
    card, options = attack.card, attack.options()
    require(norm in card.norms, f"The card lists {sorted(card.norms)}, not {norm}.")
    again = type(attack)(**json.loads(json.dumps(options)))
    require(again == attack, f"{attack} became {again} after its options went through JSON.")
    require(hash(again) == hash(attack), "Equal attacks have different hashes.")
    if card.access is Access.GRADIENTS:
        return
    problem = _problem(Net(8, 3), norm)
    query = attack.ask(attack.init(problem))
    require(
        query.objective is None,
        f"The card says access to {card.access.value}, but it asks for gradients.",
    )


# ------------------------------------------------------------------ what they share


def _problem(model: Classifier, norm: str, dtype: torch.dtype = torch.float32) -> Problem:
    """``N_JOBS`` jobs; the last is misclassified from the start."""
    x = inputs(1, N_JOBS).to(dtype)
    y = _answers(model, x)
    y[-1] = (y[-1] + 1) % 3
    return pose(model, x, y, Ball(norm, RADII[norm]))


def _answers(model: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _rescaled(model: Classifier, box: tuple[float, float]) -> Classifier:
    return lambda z: model((z - box[0]) / (box[1] - box[0]))


def _without_crash(attack: Attack, model: Classifier, problem: Problem, what: str) -> Trace:
    try:
        return drive(attack, model, problem)
    except ContractViolation:
        raise
    except Exception as error:
        raise ContractViolation(f"{type(error).__name__} with {what}: {error}") from error


def _bent(answer: Answer, y: Tensor, sign: int) -> Answer:
    """The answer of a model that is nearly fooled (1), or surer than ever (-1)."""
    shift = torch.zeros_like(answer.logits).scatter(1, y[:, None], -10.0 * sign)
    return Answer(answer.logits + shift, answer.losses + 10.0 * sign, sign * answer.gradients)


def _require_inside(
    trace: Trace, norm: str, eps: float, box: tuple[float, float] = (0.0, 1.0)
) -> None:
    beyond = excess(trace.points, trace.problem.x[trace.jobs], norm, eps, box)
    require(
        bool((beyond <= 0).all()),
        f"{int((beyond > 0).sum())} of {len(beyond)} points leave the {norm} ball of radius {eps} "
        f"within {list(box)}, by {beyond.max():.3g} at most: project before asking.",
    )


def _require_finite(trace: Trace, what: str) -> None:
    require(bool(torch.isfinite(trace.points).all()), f"A point is not finite with {what}.")


def _require_alike(points: Tensor, x: Tensor) -> None:
    seen = (tuple(points.shape[1:]), points.dtype, points.device)
    wanted = (tuple(x.shape[1:]), x.dtype, x.device)
    require(seen == wanted, f"Points are {seen}, the inputs {wanted}.")


def _require_equal(first: Trace, second: Trace, what: str) -> None:
    require(_equal(first, second), f"The points are other bytes with {what}.")


def _equal(first: Trace, second: Trace) -> bool:
    return (
        torch.equal(first.jobs, second.jobs)
        and first.points.numpy().tobytes() == second.points.numpy().tobytes()
    )


def _require_same_path(seen: Tensor, other: Tensor, job: int, what: str) -> None:
    same = seen.numpy().tobytes() == other.numpy().tobytes()
    require(
        same,
        f"Job {job} asks other points {what} (it asked {len(seen)}, then {len(other)}): a row must "
        "depend on its own input, label, target and random numbers alone.",
    )


def _stopped(state: Any, step: int) -> Any:
    """The state after two halves of its rows, shuffled, went to disk and back into other slots."""
    n = len(state.finished)
    order = Rng.from_seed(step, n).bits(()).argsort()
    halves = [rows.take(state, order[: n // 2]), rows.take(state, order[n // 2 :])]
    read = rows.join([pickle.loads(pickle.dumps(half)) for half in halves])
    slots = rows.take(read, torch.zeros(n, dtype=torch.int64))
    return rows.put(slots, order, read)


def _bytes(problem: Problem) -> list[bytes]:
    tensors = [problem.x, problem.y, problem.target, problem.logits, problem.rng.key]
    tensors += [problem.allowed.radius, problem.allowed.x, *problem.allowed.hull()]
    return [t.numpy().tobytes() for t in tensors]
