"""The clean pass: the unchanged samples, before anything is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.engine.cascade import goals
from holdfast.engine.judge import answers
from holdfast.engine.random import Rng
from holdfast.engine.scan import chunks
from holdfast.events import Event, PhaseDone
from holdfast.record import Clean

if TYPE_CHECKING:
    from holdfast.engine.run import Context


def clean(context: Context) -> Iterator[Event]:
    """What the model says to the samples that the journal does not know yet."""
    ledger, n = context.ledger, len(context.data)
    for chunk in chunks(n):
        rows = [i for i in chunk if not ledger.is_known[i]]
        if rows:
            context.append(_records(context, rows))
        yield from context.progress("", "clean", chunk.stop, n)
    accuracy = ledger.clean_accuracy
    passes = 20.0 if context.model.is_random else 1.0
    yield PhaseDone("", "clean", None, accuracy, passes, context.seconds)


def _records(context: Context, rows: list[int]) -> list[Clean]:
    x, y = context.fetch(rows)
    before = context.model.passes.forward
    logits, backward = _measured(context, rows, x, y)
    forward = (context.model.passes.forward - before) // len(rows)
    context.logits_file().write(rows, logits)
    keys = context.seen.keys[rows]
    rng = Rng(keys.to(y.device)).fold(context.plan.seed).fold(7)
    goal = goals(context.plan.goal, logits, y, rng)
    log_p = logits.log_softmax(1)
    prediction = logits.argmax(1)
    own = log_p.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = other - logits.gather(1, y[:, None]).squeeze(1)
    values = zip(
        rows,
        keys.tolist(),
        y.tolist(),
        prediction.tolist(),
        goal.tolist(),
        own.exp().tolist(),
        log_p.amax(1).exp().tolist(),
        margin.tolist(),
        (-own).tolist(),
        backward.tolist(),
        strict=True,
    )
    return [
        Clean(
            sample=i,
            key=f"{key & (2**64 - 1):016x}",
            y=label,
            prediction=answer,
            target=target,
            confidence=confidence,
            confidence_predicted=highest,
            margin=gap,
            loss=loss,
            forward=forward,
            backward=unused,
        )
        for i, key, label, answer, target, confidence, highest, gap, loss, unused in values
    ]


def _measured(context: Context, rows: list[int], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits ``(n, k)``, and the gradients that no attack will begin with ``(n,)``."""
    if context.opening is None:
        return answers(context.model, x), torch.zeros_like(y)
    (answer,) = context.model.answer([context.opening.query(x, y)])
    is_right = answer.logits.argmax(1) == y
    is_kept = context.opening.write(context, rows, answer.gradients, is_right)
    return answer.logits, (~is_kept).long()
