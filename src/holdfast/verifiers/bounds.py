"""Bounds of a network's outputs over norm balls and boxes, differentiable, for whole batches."""
# ruff: noqa: N803, N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.errors import DataError, PlanError
from holdfast.graphs.graph import Graph
from holdfast.graphs.operator import Box
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.alpha_crown import low_precision, optimise_rows, sharpen
from holdfast.verifiers.crown import State, pull_back
from holdfast.verifiers.elision import elided
from holdfast.verifiers.hull import lifted
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import Norm, Region, threat_region

BoundMethod = Literal["ibp", "interval", "crown-ibp", "crown", "alpha-crown"]
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")
# Samples bounded at once: enough to keep a core busy, few enough for its caches.
SAMPLES = 32


class Bounds(NamedTuple):
    """``lower <= rows of the specification <= upper``, each ``(n, k)``."""

    lower: Tensor
    upper: Tensor


def bounds(
    network: nn.Module | Graph,
    x: Tensor,
    eps: Tensor | float,
    norm: Norm = "linf",
    *,
    method: BoundMethod = "crown",
    C: Tensor | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0),
    steps: int = 20,
    dtype: torch.dtype = torch.float64,
) -> Bounds:
    """Bounds every output, or ``C @ outputs``, over the ball of radius ``eps`` around each input.

    Args:
        network: Module in evaluation mode, or a captured graph.
        x: Inputs ``(n, *shape)``.
        eps: Radius, or one per sample ``(n,)``.
        norm: ``linf``, ``l2``, ``l1`` or ``l0`` (then ``eps`` counts elements).
        method: ``ibp`` (or ``interval``; the rows merged with the last affine layers),
            ``crown-ibp`` (intervals inside, one backward pass), ``crown`` or ``alpha-crown``
            (optimised slopes). All are cut with the interval bound from the same boxes.
        C: Rows over the flat outputs, ``(k, m)`` or ``(n, k, m)``; the identity by default.
        domain: Least and greatest input value, or None for no limits.
        steps: Gradient steps of ``alpha-crown``.
        dtype: In float64 bounds hold with all rounding errors; in float32 they are not corrected,
            and about half of them are off by an ulp or so to the unsafe side.

    Returns:
        Lower and upper bounds, differentiable in ``x``, ``eps`` and weights that require gradients
        (``alpha-crown``: at the slopes found, which are held fixed).

    Raises:
        GraphError: The network cannot be captured.
        InputError: Inputs outside the domain, negative ``eps``, unknown norm or method.
    """
    if method not in (*METHODS, "interval"):
        raise PlanError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    graph = network if isinstance(network, Graph) else capture(network, x, fold=False)
    graph = graph.to(dtype, x.device)
    low, high = domain or (-torch.inf, torch.inf)
    if domain is None and norm != "linf":
        # Room beyond any ball of finite radius; keeps the arithmetic free of infinities.
        reach = float(x.detach().abs().max()) + float(torch.as_tensor(eps).detach().max()) + 1
        low, high = -reach, reach
    region = threat_region(x.to(dtype), torch.as_tensor(eps).to(dtype), norm, low, high)
    rows = _rows(graph, C, len(x), dtype).to(x.device)
    parts = [
        bounds_over(graph, region.rows(part), rows[part], method, steps)
        for part in (slice(i, i + SAMPLES) for i in range(0, max(1, len(x)), SAMPLES))
    ]
    return Bounds(*(torch.cat(side) for side in zip(*parts, strict=True)))


def bounds_over(
    graph: Graph, region: Region, C: Tensor, method: BoundMethod = "crown", steps: int = 20
) -> Bounds:
    """Bounds of ``C @ outputs`` over any region, all samples at once; see ``lower_over``."""
    k = C.shape[1]
    value, _ = lower_over(graph, region, torch.cat([C, -C], 1), method, steps)
    return Bounds(value[:, :k], -value[:, k:])


def lower_over(
    graph: Graph,
    region: Region,
    C: Tensor,
    method: BoundMethod = "crown",
    steps: int = 20,
    known: Sequence[Box] | None = None,
    planes: bool = False,
) -> tuple[Tensor, State]:
    """Lower bounds ``(n, k)`` of ``C @ outputs`` over any region, and the boxes of all nodes.

    Args:
        graph: The network, in the precision and on the device of the region; in float64 rounding
            errors are charged.
        region: Inputs.
        C: Rows over the flat outputs ``(n, k, m)``.
        method: As for ``bounds``.
        steps: Gradient steps of ``alpha-crown``.
        known: Boxes of all nodes that hold already, for instance of a larger region.
        planes: Try rows of ``alpha-crown`` that are not positive again with the envelopes of the
            first layer, see ``hull``; for one sample in float64.
    """
    rounding = C.dtype == torch.float64
    inner = "interval" if method in ("ibp", "interval", "crown-ibp") else "crown"
    state = propagate(graph, region, inner, known, rounding)
    A = C.reshape(*C.shape[:2], *graph.output_shape)
    value = elided(graph, region, state, A, rounding)
    if method not in ("ibp", "interval"):
        if method == "alpha-crown":
            state = sharpen(graph, region, state, steps)
            backward, chosen = _optimised(graph, region, state, A, steps)
            if planes:
                backward = lifted(graph, region, state, A, chosen, backward)
        else:
            bound = pull_back(graph, len(graph.nodes) - 1, A, state, rounding=rounding)
            backward = region.minimum(bound.A) + bound.constant
        # Where overflow left no number, nothing is known.
        value = torch.fmax(value, backward)
    return value.nan_to_num(-torch.inf, torch.inf, -torch.inf), state


def margins(y: Tensor, n_classes: int) -> Tensor:
    """Rows ``logit_y - logit_j`` for all other classes, ``(n, n_classes - 1, n_classes)``.

    A single logit is the margin of class 1 over class 0: its rows are ``(n, 1, 1)``.

    Raises:
        InputError: A class that the network does not have.
    """
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < max(2, n_classes):
        wrong = y[(y < 0) | (y >= max(2, n_classes))][0]
        raise DataError(
            f"y contains class {int(wrong)}; allowed: 0 to {max(2, n_classes) - 1}, as the network "
            f"has {n_classes} output{'s' if n_classes > 1 else ''}"
        )
    if n_classes == 1:
        return (2.0 * y - 1.0).reshape(-1, 1, 1)
    eye = torch.eye(n_classes, device=y.device)
    rows = eye[y].unsqueeze(1) - eye
    others = (torch.arange(n_classes, device=y.device) != y.unsqueeze(1)).nonzero()[:, 1]
    return rows.gather(1, others.reshape(len(y), -1, 1).expand(-1, -1, n_classes))


def _rows(graph: Graph, C: Tensor | None, n: int, dtype: torch.dtype) -> Tensor:
    m = graph.nodes[-1].size
    C = torch.eye(m) if C is None else C
    if C.shape[-1] != m:
        raise PlanError(f"C has {C.shape[-1]} columns; the network has {m} outputs")
    C = C.to(dtype)
    return C.expand(n, *C.shape) if C.dim() == 2 else C


def _optimised(
    graph: Graph, region: Region, state: State, A: Tensor, steps: int
) -> tuple[Tensor, Mapping[int, Tensor]]:
    """Choices searched in float32, bounds evaluated in the graph's precision."""
    start, rounding = len(graph.nodes) - 1, A.dtype == torch.float64
    with torch.no_grad():
        quick, low = graph.to(torch.float32), low_precision(state)
        args = (quick, start, A.float(), low, region.to(torch.float32))
        choices = optimise_rows(*args, steps)
    chosen = choices.map(lambda t: t.to(A.dtype)).parameters
    bound = pull_back(graph, start, A, state, parameters=chosen, rounding=rounding)
    return region.minimum(bound.A) + bound.constant, chosen
