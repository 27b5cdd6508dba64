"""Losses that attacks maximise: ``(n, k)`` logits, ``(n,)`` labels and targets -> ``(n,)``.

``target`` is -1 in rows without one. Every loss is defined for any number of classes from two on
(a single logit was turned into two by the model) and does not look at other rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import PlanError

LOGIT_EPS = 1e-12  # Croce and Hein (2020), equation 6: keeps the ratio finite


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits with the label's own set to -inf, so that it is never the largest."""
    return logits.scatter(1, y[:, None], -torch.inf)


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of a wrong class ``(n,)``."""
    return _others(logits, y).amax(1)


def margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``; with a target ``z_t - z_y``. Positive: fooled."""
    wanted = torch.where(target >= 0, _pick(logits, target.clamp_min(0)), best_other(logits, y))
    return wanted - _pick(logits, y)


def goal_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """How far the goal is reached; positive exactly where the attacker has won.

    Without a target ``max_{i != y} z_i - z_y``; with one ``z_t - max_{i != t} z_i``, which unlike
    the pairwise difference of :func:`margin` cannot be positive while a third class is the answer.
    """
    is_targeted = target >= 0
    aim = torch.where(is_targeted, target, y)
    gain = best_other(logits, aim) - _pick(logits, aim)
    return torch.where(is_targeted, -gain, gain)


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the label; with a target, minus that of the target."""
    is_targeted = target >= 0
    loss = F.cross_entropy(logits, torch.where(is_targeted, target, y), reduction="none")
    return torch.where(is_targeted, -loss, loss)


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020, arXiv:2003.01690, equations 6 and 7).

    Untargeted ``-(z_y - max_{i != y} z_i) / (z_1 - z_3)``, targeted
    ``-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2)`` with the logits sorted downwards. The paper needs
    three and four classes; with three the targeted form divides by ``z_1 - z_3``, and with two
    classes, where no shift-invariant scale is left, the margin itself is used.
    """
    k = logits.shape[1]
    gain = margin(logits, y, target)
    if k < 3:
        return gain
    top = logits.topk(min(k, 4), dim=1).values
    spread = top[:, 0] - top[:, 2]
    if k > 3:
        spread = torch.where(target >= 0, top[:, 0] - (top[:, 2] + top[:, 3]) / 2, spread)
    return gain / (spread + LOGIT_EPS)


LOSSES: dict[str, Callable[..., Tensor]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def loss_named(name: str) -> Callable[..., Tensor]:
    """The loss called ``name``.

    Raises:
        PlanError: where there is none.
    """
    if name not in LOSSES:
        raise PlanError(f"Unknown loss {name!r}. Use one of: {', '.join(LOSSES)}.")
    return LOSSES[name]
