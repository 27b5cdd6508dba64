"""Contract of attacks that look ahead: what they foresee is what they ask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast import rows
from holdfast.attacks.base import Attack
from holdfast.contracts._drive import Classifier, drive, pose, reply
from holdfast.contracts._toys import RADII, Net, inputs
from holdfast.contracts._violation import require
from holdfast.engine.lookahead import Preview
from holdfast.perturbations.ball import Ball

N_JOBS, N_AHEAD = 4, 5


def foresees_its_questions(attack: Attack, norm: str) -> None:
    """A job that is asked several questions at a time asks the same ones as one by one."""
    if not attack.looks_ahead:
        return
    model = Net(8, 3)
    x = inputs(1, N_JOBS)
    with torch.no_grad():
        y = model(x).argmax(1)
    problem = pose(model, x, y, Ball(norm, RADII[norm]))
    trace = drive(attack, model, problem)
    for job in range(N_JOBS):
        plain = trace.path(job)
        state = attack.init(rows.take(problem, torch.tensor([job])))
        foreseen, n_calls = _foreseen(attack, model, state, len(plain))
        same = plain.numpy().tobytes() == foreseen.numpy().tobytes()
        require(
            same,
            f"Job {job} asks other points where it looks ahead (it asked {len(plain)}, then "
            f"{len(foreseen)}): ahead() must give what ask() gives after answers that "
            "is_fruitless() says change nothing.",
        )
        require(
            n_calls < len(plain), "Looking ahead saved no call: is every answer said to matter?"
        )


def _foreseen(attack: Attack, model: Classifier, state: Any, most: int) -> tuple[Tensor, int]:
    """The points of one job that looks ahead, at most about ``most``, and its calls."""
    points: list[Tensor] = []
    n_calls = 0
    while not bool(state.finished.all()) and len(points) <= most:
        view = Preview.of(attack, state, N_AHEAD)
        query = attack.ask(state) if view is None else view.query
        answer = reply(model, query)
        n_calls, n_passed = n_calls + 1, 0
        if view is not None:
            passed = view.passed(attack, answer)
            state, _, answer = view.at(passed, answer)
            n_passed = int(passed)
        points += list(query.points[: n_passed + 1])
        state = attack.tell(state, answer)
    return torch.stack(points), n_calls
