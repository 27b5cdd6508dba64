"""The attack inside a training step: the same attacks on one batch, with nothing around them.

An audit checks the model, refills slots, judges claims and writes a journal. A training step wants
the changed inputs and not one pass more: the caller knows its model, every row uses all its steps,
and nothing is read back from the device before the result is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.attacks.base import Answer, Attack, Objective, Problem, Query
from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.model import Model
from holdfast.rows import like
from holdfast.threat import AllowedSet, Threat, parse_threat


def inner_attack(
    attack: Attack,
    model: Model | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    within: AllowedSet | Threat | str,
    rng: Rng | int = 0,
    *,
    keep: Literal["last", "best"] = "last",
    objective: Objective | None = None,
    start: Tensor | None = None,
    targets: Tensor | None = None,
    logits: Tensor | None = None,
    is_eval: bool = True,
) -> Tensor:
    """Changed inputs ``(n, *shape)`` of one batch after all steps of ``attack``.

    Costs one forward and one backward pass per step, and one more forward pass with
    ``keep="best"``. Weights get no gradients, buffers and random state are untouched, precision
    (autocast) is the caller's. Nothing is checked: inputs outside the domain, or a model that
    :meth:`Model.recognise` has not seen and whose output is no logits, give wrong results.

    Args:
        attack: One with a fixed number of steps.
        model: Wrapped once, before the loop; a module or callable with logits ``(n, k)`` is wrapped
            here, which costs a walk over its weights.
        x: Clean inputs on the model's device.
        y: Labels ``(n,)`` int64.
        within: The allowed changes: bound already, or a threat or its text to bind to ``x``.
        rng: Random numbers of each row, or a seed; give another one at every step of the training.
        keep: The last iterate, as in most training recipes, or the one of largest objective.
        objective: What to ascend instead of the attack's own loss (``TRADES``: a divergence from
            the clean answer, its rows in ``objective.rows``).
        start: First points, instead of the attack's own.
        targets: Class to reach ``(n,)``, or -1.
        logits: The clean answers, for attacks that choose targets by them.
        is_eval: Run in evaluation mode; False: in the mode the model is in.

    Raises:
        PlanError: for an attack without a fixed number of steps.
    """
    if attack.card.is_minimal or keep not in ("last", "best"):
        raise PlanError(
            f"inner_attack ran {attack.card.name!r} with keep={keep!r}. Use an attack with a fixed "
            "number of steps (pgd, apgd, fgsm), and keep 'last' or 'best'."
        )
    model = Model.wrap(model)
    problem = _problem(model, x.detach(), y, within, rng)
    if targets is not None:
        problem = replace(problem, target=targets)
    if logits is not None:
        problem = replace(problem, logits=logits)
    with _evaluation_mode(model) if is_eval else _as_it_is():
        return _ascend(attack, model, problem, _Search(keep == "best", objective, start))


class _Search:
    """How a batch is searched: what is ascended, from where, and what is kept."""

    __slots__ = ("keeps_best", "objective", "start")

    def __init__(self, keeps_best: bool, objective: Objective | None, start: Tensor | None) -> None:
        self.keeps_best, self.objective, self.start = keeps_best, objective, start

    def query(self, attack: Attack, state: Any) -> Query:
        """What the attack asks, about the caller's objective where there is one."""
        query = attack.ask(state)
        if self.objective is None or query.objective is None:
            return query
        return replace(query, objective=self.objective)


def _problem(
    model: Model, x: Tensor, y: Tensor, within: AllowedSet | Threat | str, rng: Rng | int
) -> Problem:
    if isinstance(within, str):
        within = parse_threat(within)
    allowed: Any = within if hasattr(within, "project") else within.bind(x, model.domain)  # type: ignore[union-attr]
    if isinstance(rng, int):
        rng = Rng.from_seed(rng, len(x), x.device)
    return Problem(x, y, torch.full_like(y, -1), allowed, rng, x.new_empty(len(x), 0))


def _ascend(attack: Attack, model: Model, problem: Problem, search: _Search) -> Tensor:
    state = attack.init(problem)
    if search.start is not None:
        state = replace(state, x=search.start.detach().clone())
    best, highest = problem.x, torch.full_like(problem.y, -torch.inf, dtype=torch.float32)
    for _ in range(attack.max_queries - 1):
        query = search.query(attack, state)
        answer = model.answer([query])[0]
        if search.keeps_best:
            best, highest = _better(query.points, answer.losses, best, highest)
        state = attack.tell(state, _finite(answer))
    query = search.query(attack, state)
    if not search.keeps_best or query.objective is None:
        return query.points.detach()
    final = query.objective.function(model.logits(query.points), *query.objective.rows)
    return _better(query.points, final, best, highest)[0].detach()


def _better(points: Tensor, losses: Tensor, best: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row the point of larger loss; the first points always count."""
    is_better = losses > highest
    return torch.where(like(is_better, points), points, best), highest.fmax(losses.float())


def _finite(answer: Answer) -> Answer:
    """NaN and infinite gradients as zeros, without asking the device whether there are any."""
    if answer.gradients.numel() == 0:
        return answer
    return replace(answer, gradients=answer.gradients.nan_to_num(0.0, 0.0, 0.0))


@contextmanager
def _evaluation_mode(model: Model) -> Iterator[None]:
    """Only the flags that differ are changed, and changed back: microseconds, not a session."""
    changed = [m for module in model.modules for m in module.modules() if m.training]
    for m in changed:
        m.training = False
    try:
        yield
    finally:
        for m in changed:
            m.training = True


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
