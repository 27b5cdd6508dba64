"""What certified recipes share: the boxes, their bounds, the loss of the worst logits, the ramp.

The bounds are those of :mod:`holdfast.verifiers.trainable`: the verifier's operators, but in the
training's own precision and without the correction of rounding errors. They are minimised, not
claimed: the claim is made afterwards, by the verifier.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holdfast.defenses._losses import worst_case
from holdfast.defenses._steps import in_domain, scaled
from holdfast.defenses.base import Batch, Step
from holdfast.graphs.graph import Graph
from holdfast.graphs.torch_capture import Trace, trace
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.trainable import blend

_WARMUP = 0.1  # share of the ramp in which the radius stays 0 (Gowal et al.: 2,000 of 12,000 steps)


class Bounded(NamedTuple):
    """What bounds say of a batch.

    Attributes:
        loss: The mean cross-entropy of the worst logits that the bounds allow.
        proven: Share of samples whose class cannot change.
    """

    loss: Tensor
    proven: Tensor


def bounded(
    step: Step, batch: Batch, centre: Tensor, radius: float, linear: float = 0.0
) -> Bounded:
    """Bounds over boxes around ``centre`` ``(n, *shape)``, cut with the domain.

    Args:
        step: The loop's.
        batch: The samples; their labels count.
        centre: Middle of the boxes.
        radius: Half their side, in units of the threat's (ramped) radius.
        linear: Share of the linear bound (CROWN-IBP); the rest are intervals.

    Raises:
        GraphError: The network cannot be captured, or holds an operator without bounds.
    """
    with step.full_precision():
        lower = least_margins(step, batch, centre, radius, linear)
        loss = worst_case(lower).mean()
    proven = (lower.detach() > 0).all(1).float().mean()
    step.notes["worst_case"], step.notes["proven"] = loss.detach(), proven
    return Bounded(loss, proven)


def least_margins(
    step: Step, batch: Batch, centre: Tensor, radius: float, linear: float = 0.0
) -> Tensor:
    """Lower bounds of the margins over every wrong class ``(n, k - 1)``; see :func:`bounded`."""
    graph = live_graph(step.network, batch.x)
    allowed = step.bind(batch, scaled(step.threat, radius))
    size = allowed.radius.reshape(-1, *[1] * (centre.ndim - 1))
    region = BoxRegion(in_domain(allowed, centre - size), in_domain(allowed, centre + size))
    rows = margin_rows(batch.y, graph.nodes[-1].size)
    return blend(graph, region, rows, linear).lower


def live_graph(network: nn.Module, example: Tensor) -> Graph:
    """The network in evaluation mode as a graph whose weights are the live ones."""
    return _traced(network, example.shape[1:], example.device).graph()


@lru_cache(maxsize=2)
def _traced(network: nn.Module, shape: torch.Size, device: torch.device) -> Trace:
    """Tracing takes tenths of a second, so the networks traced last are remembered."""
    return trace(network, torch.zeros(1, *shape, device=device))


def margin_rows(y: Tensor, n_classes: int) -> Tensor:
    """Rows ``z_y - z_j`` for the wrong classes ``(n, k - 1, k)``, without asking the device."""
    eye = torch.eye(n_classes, device=y.device)
    others = (y[:, None] + torch.arange(1, n_classes, device=y.device)) % n_classes
    return eye[y].unsqueeze(1) - eye[others]


def mixed(step: Step, batch: Batch, robust: Tensor, last: float) -> Tensor:
    """``kappa CE(f(x), y) + (1 - kappa) robust``; kappa falls from 1 to ``last`` with the ramp."""
    kappa = 1 - (1 - last) * step.ramp
    if kappa == 0:
        return robust
    return kappa * batch.cross_entropy(step.logits(batch.x)).mean() + (1 - kappa) * robust


def slow_ramp(progress: float, share: float) -> float:
    """0 during the warm-up, then straight to 1 at ``share`` of the training."""
    if share <= 0:
        return 1.0
    begin = _WARMUP * share
    return min(1.0, max(0.0, (progress - begin) / (share - begin)))
