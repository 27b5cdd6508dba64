"""What recipes minimise: plain functions of logits, one value per row, finite for finite logits.

Everything is computed from logarithms of probabilities, so that no probability of exactly 0 or 1
makes a NaN; the authors' small constants are kept where they change the loss, not where they only
guard a logarithm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks._losses import best_other

MART_ROOM = 1.0001  # Wang et al. (2020), authors' code: keeps log(1 - p) above log(1e-4)
MART_WEIGHT = 1.0000001


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy ``(n, k), (n,) -> (n,)``; the label has ``1 - label_smoothing (k-1)/k``."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def kl(logits: Tensor, other: Tensor) -> Tensor:
    """``KL(softmax(logits) || softmax(other))`` ``(n, k), (n, k) -> (n,)``, in float32 at least."""
    log_p, log_q = (F.log_softmax(_precise(z), dim=1) for z in (logits, other))
    return (log_p.exp() * (log_p - log_q)).sum(1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy and the room to the likeliest wrong class (Wang et al., 2020, equation 8).

    ``-log p_y - log(1.0001 - max_{k != y} p_k)``, ``(n, k), (n,) -> (n,)``.
    """
    log_p = F.log_softmax(_precise(logits), dim=1)
    wrong = best_other(log_p, y).exp()
    return F.nll_loss(log_p, y, reduction="none") - (MART_ROOM - wrong).log()


def mart(logits: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """Loss of MART (Wang et al., 2020, equation 11), ``(n, k), (n, k), (n,) -> (n,)``.

    Boosted cross-entropy at the changed input, plus ``beta (1.0000001 - p_y) KL(p || p')``: what
    the clean input is misclassified with counts more.
    """
    p_y = F.softmax(_precise(logits), dim=1).gather(1, y[:, None]).squeeze(1)
    divergence = kl(logits, adversarial) * (MART_WEIGHT - p_y)
    return boosted_cross_entropy(adversarial, y) + beta * divergence


def trades(logits: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """``CE(f(x), y) + beta KL(f(x) || f(x'))`` (Zhang et al., 2019), per row."""
    loss = cross_entropy(logits, y)
    return loss if beta == 0 else loss + beta * kl(logits, adversarial)


def misalignment(gradient: Tensor, other: Tensor) -> Tensor:
    """``1 - cos(gradient, other)`` per row, 0 where one of them vanishes.

    ``(n, *shape), (n, *shape) -> (n,)``. Rows are first divided by their largest element, so that
    gradients too small to be squared still have a direction.
    """
    a, b = (_scaled(g.flatten(1)) for g in (gradient, other))
    is_some = (a != 0).any(1) & (b != 0).any(1)
    safe = torch.ones_like(a)
    a, b = torch.where(is_some[:, None], a, safe), torch.where(is_some[:, None], b, safe)
    cosine = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(is_some, 1 - cosine, torch.zeros_like(cosine))


def worst_case(margins: Tensor) -> Tensor:
    """Cross-entropy of the worst logits that bounds allow (Gowal et al., 2018), ``(n,)``.

    ``margins (n, k - 1)`` are lower bounds of ``z_y - z_j`` for the wrong classes: in the worst
    case the right class has logit 0 and every other the negative of its margin.
    """
    worst = torch.cat([torch.zeros_like(margins[:, :1]), -_precise(margins)], 1)
    return worst.logsumexp(1)


def smoothed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log mean_i softmax(z_i)_y`` over draws ``(d, n, k), (n,) -> (n,)`` (Salman et al., 2019).

    The loss of the classifier whose probabilities are averaged over noise, not the average loss.
    """
    log_p = F.log_softmax(_precise(logits), dim=2)
    mean = log_p.logsumexp(0) - torch.log(log_p.new_tensor(float(len(log_p))))
    return -mean.gather(1, y[:, None]).squeeze(1)


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scaled(rows: Tensor) -> Tensor:
    size = rows.detach().abs().amax(1, keepdim=True)
    return rows / torch.where(size > 0, size, torch.ones_like(size))
