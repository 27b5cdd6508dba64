"""Looking ahead: the rows that a call has to spare take what comes next if nothing changes.

A random search asks one question after the other, and most answers change nothing but the number of
the question. So the next ones are known, and a call of few rows, which takes about as long as a
fuller one and is often padded to the full (see ``docs/design/same-bits.md``), can hold several of
each job. The first answer that does change something is told as always, those before it are counted
as if they had come one by one, and those after it are thrown away: the job goes its way to the
last bit, in fewer calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.base import Answer, Attack, Query
from holdfast.engine.jobs import NO_LIMIT, Job
from holdfast.engine.tally import Tally, passed_over
from holdfast.model import Model
from holdfast.rows import take

_ROWS, _GPU_ROWS = 16, 64  # calls of fewer rows take hardly less time
_MOST = 16  # questions of a job in one call


def room(model: Model, n_rows: int, n_able: int) -> int:
    """Questions of each of ``n_able`` jobs in a call that has ``n_rows`` at one question each.

    One where looking ahead could cost somebody: a model whose answers vary, or one outside this
    process, that is paid by the call.
    """
    if n_able == 0 or model.is_random or model.takes_arrays or not model.modules:
        return 1
    if not model.tuning.is_exact or model.max_rows is not None:
        return 1
    block, few = model.block, 1
    if model.tuning.has_room:
        few = _ROWS if model.device.type == "cpu" else _GPU_ROWS
    if block.is_fixed:
        full = -(-n_rows // block.size) * block.size
    else:
        full = few // block.size if block.is_filled else max(few, block.size)
    return min(_MOST, 1 + max(0, full - n_rows) // n_able)


def is_able(jobs: list[Job], tally: Tally) -> bool:
    """Whether no job can end, or be refused, between two questions."""
    return all(job.max_passes == job.max_forward == NO_LIMIT for job in jobs) and not bool(
        tally.rejected.any()
    )


@dataclass(frozen=True, slots=True)
class Preview:
    """The states of some jobs after 0, 1, ..., ``n - 1`` answers that change nothing.

    Attributes:
        states: Copies of one job's row one after the other.
        query: What they ask.
        n: Copies of each.
    """

    states: Any
    query: Query
    n: int

    @classmethod
    def of(cls, attack: Attack, state: Any, n: int) -> Preview | None:
        """None where the attack cannot tell what comes next."""
        states = attack.ahead(state, n)
        return None if states is None else cls(states, attack.ask(states), n)

    def passed(self, attack: Attack, answer: Answer) -> Tensor:
        """How many answers ``(m,)`` change nothing for each job, before one that it must be told.

        That is the first that does change something, or the answer to its last sure question.
        """
        is_open = ~self.states.finished.reshape(-1, self.n)
        is_last = torch.ones_like(is_open)
        is_last[:, :-1] = ~is_open[:, 1:]
        is_fruitless = attack.is_fruitless(self.states, answer).reshape(-1, self.n)
        return (is_last | ~is_fruitless).to(torch.int64).argmax(1)

    def at(self, passed: Tensor, answer: Answer) -> tuple[Any, Query, Answer]:
        """State, question and answer of every job after so many ``(m,)`` answers."""
        rows = torch.arange(len(passed), device=passed.device) * self.n + passed
        told = replace(answer, logits=answer.logits[rows])
        return take(self.states, rows), Query(self.query.points[rows]), told

    def counted(self, tally: Tally, passed: Tensor, answer: Answer) -> Tally:
        """With the answers before those."""
        return passed_over(tally, answer.logits.reshape(len(passed), self.n, -1), passed)
