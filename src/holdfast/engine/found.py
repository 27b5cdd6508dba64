"""Adversarial inputs that come from elsewhere than a search under this threat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.engine.judge import judge
from holdfast.record import Attempt, Outcome
from holdfast.threat import Threat

if TYPE_CHECKING:
    from holdfast.engine.run import Context


def submit(
    context: Context, threat: Threat, rows: list[int], points: Tensor, stage: int, source: str
) -> None:
    """Put inputs before the judge; those accepted go to their file and the journal.

    Args:
        context: The run.
        threat: What is allowed.
        rows: Samples that the inputs belong to.
        points: Changed inputs ``(n, *shape)``.
        stage: What the attempts are filed under, negative: no stage of the cascade.
        source: Where they come from, in words.
    """
    text = threat.describe()
    x, y = context.fetch(rows)
    allowed = context.bind(threat, x, rows)
    goal = torch.from_numpy(context.ledger.goal[rows]).to(x.device)
    quantise = context.plan.quantise is not None
    found = judge(context.model, points.to(x), allowed, y, goal, quantise)
    chosen = found.accepted.nonzero().squeeze(1).tolist()
    if not chosen:
        return
    context.adversarial_file(text).write([rows[i] for i in chosen], found.points[chosen])
    distances = allowed.distance(found.points)
    attempts = []
    for i in chosen:
        logits, label = found.logits[i], int(y[i])
        chance, answer = logits.softmax(0), int(logits.argmax())
        wrong = torch.cat([logits[:label], logits[label + 1 :]]).max()
        attempts.append(
            Attempt(
                threat=text,
                sample=rows[i],
                stage=stage,
                attack=source,
                outcome=Outcome.BROKEN,
                forward=2,
                backward=0,
                margin=float(wrong - logits[label]),
                loss=float(-logits.log_softmax(0)[label]),
                confidence=float(chance[label]),
                prediction=answer,
                prediction_confidence=float(chance[answer]),
                distance=float(distances[i]),
            )
        )
    context.append(attempts)
