"""Bounds to train through: quick, one-sided, differentiable in the weights, and no proof.

Certified training minimises a loss of the lower bounds of all margins (Gowal et al., 2018,
arXiv:1810.12715; Zhang et al., 2020, arXiv:1906.06316). What it needs differs from a proof: the
precision of training, no charge for rounding, whole batches at once, nothing that waits for the
device. A model trained so is certified afterwards by ``holdfast.bounds`` or an audit.

>>> traced = trace(module, x[:1])                       # once
>>> graph = traced.graph()                              # every step: the live weights
>>> relaxed = relax(graph, BoxRegion(lower, upper), margins(y, 10), "crown-ibp")
>>> loss = cross_entropy(relaxed.logits(), zeros)       # backward reaches the module's weights
"""
# ruff: noqa: N803, N806 - A and C are the matrices of the literature

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.verifiers.crown import State, pull_back
from holdfast.verifiers.elision import elided
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import Region

TrainingMethod = Literal["ibp", "crown-ibp", "crown"]


class Relaxed(NamedTuple):
    """Bounds of a batch, up to rounding.

    Attributes:
        lower: Lower bounds of the rows of the specification ``(n, k)``.
        boxes: Bounds of every node of the graph, for regularisers of unstable neurons.
    """

    lower: Tensor
    boxes: list[Box]

    def logits(self) -> Tensor:
        """Worst-case logits ``(n, 1 + k)``; the right class is class 0.

        For rows of margins: class 0 has logit zero, every other minus its least margin.
        """
        return torch.cat([torch.zeros_like(self.lower[:, :1]), -self.lower], 1)


def relax(graph: Graph, region: Region, C: Tensor, method: TrainingMethod = "ibp") -> Relaxed:
    """Lower bounds of ``C @ outputs`` over the region, differentiable in everything.

    Args:
        graph: The network, in the precision and on the device of the region.
        region: Inputs, ``BoxRegion(lower, upper)`` for boxes.
        C: Rows over the flat outputs ``(n, k, m)``, for example ``margins(y, m)``.
        method: ``ibp`` (intervals, the last affine layers merged with ``C``), ``crown-ibp``
            (intervals inside, one backward pass), ``crown`` (backward passes for inner layers too;
            dear).
    """
    inner = "crown" if method == "crown" else "interval"
    state = propagate(graph, region, inner, rounding=False)
    A = C.to(state.boxes[-1].lower.dtype).reshape(*C.shape[:2], *graph.output_shape)
    return Relaxed(_lower(graph, region, state, A, method), state.boxes)


def blend(graph: Graph, region: Region, C: Tensor, share: float) -> Relaxed:
    """``share`` of the CROWN-IBP bound and the rest of the interval bound, from one propagation.

    CROWN-IBP training moves the share from 1 to 0 while eps grows (section 3.2 of its paper).
    """
    state = propagate(graph, region, "interval", rounding=False)
    A = C.to(state.boxes[-1].lower.dtype).reshape(*C.shape[:2], *graph.output_shape)
    if share in (0.0, 1.0):
        return Relaxed(
            _lower(graph, region, state, A, "crown-ibp" if share else "ibp"), state.boxes
        )
    backward = _lower(graph, region, state, A, "crown-ibp")
    intervals = _lower(graph, region, state, A, "ibp")
    return Relaxed(share * backward + (1.0 - share) * intervals, state.boxes)


def _lower(graph: Graph, region: Region, state: State, A: Tensor, method: TrainingMethod) -> Tensor:
    if method == "ibp":
        return elided(graph, region, state, A, rounding=False)
    bound = pull_back(graph, len(graph.nodes) - 1, A, state, rounding=False)
    return region.minimum(bound.A) + bound.constant
