"""``holdfast.bounds``, ``certified_radius``, ``smooth``: what holds for every allowed input.

>>> lower, upper = holdfast.bounds(model, x, "linf:0.1")
>>> radius = holdfast.certified_radius(model, x, y, norm="l2")
"""
# ruff: noqa: N803, N806 - C is the matrix of the literature

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from holdfast.data import as_inputs, as_labels
from holdfast.errors import GraphError, ModelError, PlanError, ThreatError
from holdfast.graphs.graph import Graph
from holdfast.graphs.torch_capture import Trace, capture, trace
from holdfast.model import Model
from holdfast.perturbations.ball import Ball
from holdfast.threat import Domain, Threat, parse_threat
from holdfast.verifiers.bounds import METHODS, SAMPLES, BoundMethod, Bounds, bounds_over
from holdfast.verifiers.radius import Search, bisected_radius
from holdfast.verifiers.regions import Norm, threat_region
from holdfast.verifiers.smoothing import SmoothedModel

RadiusMethod = Literal["ibp", "crown-ibp", "crown", "alpha-crown", "lipschitz"]
Network = Model | nn.Module | Graph | Trace | str | os.PathLike[str]


def bounds(
    model: Network,
    x: Tensor,
    threat: Threat | str,
    *,
    method: BoundMethod = "crown",
    C: Tensor | None = None,
    domain: Domain | tuple[float, float] | None = None,
    steps: int = 20,
) -> Bounds:
    """Least and greatest logits over all allowed changes of each input.

    The bounds hold for the network's real-number function with the stored weights, all rounding
    errors of the computation charged. They are differentiable in ``x``, in the radius of a
    :class:`Ball` and in the weights of a live module. (Each call captures the module again; to
    bound it many times, give ``holdfast.graphs.torch_capture.trace(module, x)`` instead. To train,
    see ``holdfast.verifiers.trainable``, which is quicker and proves nothing.)

    Args:
        model: A :class:`Model`, a module in evaluation mode, the path of an ONNX file, a graph or a
            trace.
        x: Inputs ``(n, *shape)``.
        threat: ``"linf:8/255"``, ``"l2:0.5"``, ``"l1:12"``, ``"l0:20"``, or a :class:`Ball`, whose
            radius may differ by sample.
        method: ``ibp`` (quickest), ``crown-ibp``, ``crown``, ``alpha-crown`` (tightest).
        C: Rows over the logits ``(k, m)`` or ``(n, k, m)``: bounds of ``C @ logits``.
        domain: The box of valid inputs; that of the :class:`Model`, or [0, 1], by default.
        steps: Gradient steps of ``alpha-crown``.

    Returns:
        ``Bounds(lower, upper)``, each ``(n, k)``, in float64.

    Raises:
        GraphError: the model cannot be captured, or has an operator without bounds.
        ThreatError: the threat is not a norm ball.
        InputError: unknown method, or inputs outside the domain.
    """
    if method not in METHODS:
        raise PlanError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    ball, x = _ball(threat), as_inputs(x)
    graph = as_graph(model, x).to(torch.float64, x.device)
    low, high = _domain(model, domain).tensors(x.double())
    eps = torch.as_tensor(ball.eps, dtype=torch.float64, device=x.device)
    norm = cast(Norm, ball.norm)
    region = threat_region(x.double(), eps, norm, low, high)
    m = graph.nodes[-1].size
    C = torch.eye(m) if C is None else C
    if C.shape[-1] != m:
        raise PlanError(f"C has {C.shape[-1]} columns; the network has {m} outputs")
    rows = C.to(region.hull().lower).expand(len(x), *C.shape[-2:])
    parts = [
        bounds_over(graph, region.rows(part), rows[part], method, steps)
        for part in (slice(i, i + SAMPLES) for i in range(0, max(1, len(x)), SAMPLES))
    ]
    return Bounds(*(torch.cat(side) for side in zip(*parts, strict=True)))


@torch.no_grad()
def certified_radius(
    model: Network,
    x: Tensor,
    y: Tensor,
    norm: Norm = "linf",
    *,
    method: RadiusMethod = "crown",
    domain: Domain | tuple[float, float] | None = None,
    tolerance: float = 0.01,
    start: Tensor | None = None,
) -> Tensor:
    """The largest radius at which each sample's class is proven not to change.

    Args:
        model: As for :func:`bounds`.
        x: Inputs ``(n, *shape)``.
        y: Classes ``(n,)``.
        norm: ``linf``, ``l2``, ``l1``, or ``l0`` (a number of elements).
        method: Bounds that prove each trial of a bisection; ``lipschitz`` instead divides the
            margins by Lipschitz constants (l2 only; at once, and good for networks made for it).
        domain: The box of valid inputs; that of the :class:`Model`, or [0, 1], by default.
        tolerance: The result is within this share of the largest radius that the method proves.
        start: Radii ``(n,)`` to try first, for example of an earlier version of the model.

    Returns:
        Radii ``(n,)`` in float64; 0 where the class is wrong already or nothing is proven.

    Raises:
        GraphError: the model cannot be captured, or has an operator without bounds.
        InputError: unknown norm or method, or inputs outside the domain.
    """
    x, y = as_inputs(x), as_labels(y)
    graph = as_graph(model, x).to(torch.float64, x.device)
    if norm not in ("linf", "l2", "l1", "l0"):
        raise PlanError(f"norm {norm!r} is unknown; allowed: linf, l2, l1, l0")
    if method == "lipschitz":
        from holdfast.verifiers.lipschitz import lipschitz_radius

        return lipschitz_radius(graph, x.double(), y, norm)
    if method not in METHODS:
        raise PlanError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}, lipschitz")
    low, high = _domain(model, domain).tensors(x.double())
    search = Search(method, tolerance)
    if method == "alpha-crown" and start is None:
        start = bisected_radius(graph, x.double(), y, norm, (low, high), Search("crown", 0.2))
    return bisected_radius(graph, x.double(), y, norm, (low, high), search, start)


def smooth(
    model: Model | nn.Module | Callable[[Tensor], Tensor], sigma: float = 0.25, **options: Any
) -> SmoothedModel:
    """A smoothed model that predicts, abstains and certifies by voting over noisy inputs.

    Args:
        model: A :class:`Model`, a module, or any function from inputs to logits.
        sigma: Standard deviation of the noise, in units of the input.
        options: ``noise`` (``"gaussian"`` for l2, ``"uniform"`` for l1, ``Ablation``,
            ``Categories`` or ``Flips`` of ``holdfast.verifiers.discrete_noise`` for l0),
            ``denoiser``, ``alpha``, ``n0``, ``n``, ``batch``, ``seed``; see
            :class:`SmoothedModel`.

    Raises:
        InputError: an option out of range.
    """
    if isinstance(model, Model):
        return SmoothedModel(model.logits, sigma, **options)
    if not callable(model):
        raise ModelError(
            f"{type(model).__name__} cannot be smoothed. Give a module or a function to logits."
        )
    return SmoothedModel(model, sigma, **options)


def as_graph(model: Network, x: Tensor) -> Graph:
    """The network as a graph, with its live weights where they require gradients."""
    if isinstance(model, Graph):
        return model
    if isinstance(model, Trace):
        return model.graph()
    if isinstance(model, (str, os.PathLike)):
        return _from_file(os.fspath(model))
    module = _module(model, x) if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{type(module).__name__} cannot be bounded. Give a torch.nn.Module, a "
            "holdfast.Model around one, or the path of an ONNX file."
        )
    if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
        return trace(module, x).graph()
    return capture(module, x, fold=False)


def _from_file(path: str) -> Graph:
    if not path.endswith(".onnx"):
        raise GraphError(f"{path!r} is not an ONNX file. Give a file that ends in .onnx.")
    from holdfast.graphs.onnx_reader import read_onnx

    return read_onnx(path, fold=False)


def _module(model: Model, x: Tensor) -> nn.Module:
    """Normalisation, network and head of a model as one module."""
    from holdfast.engine.proving import Deployed

    if len(model.modules) != 1 or model.f is not model.modules[0]:
        raise ModelError(
            "This model is a function around a module, which cannot be captured. Give the "
            "torch.nn.Module itself."
        )
    if not model.n_classes:
        model.recognise(x)
    if model.head.kind not in ("logits", "logit"):
        raise ModelError(f"This model gives {model.head.kind}; only logits have bounds.")
    return Deployed(model).eval()


def _ball(threat: Threat | str) -> Ball:
    found: Any = threat if hasattr(threat, "describe") else parse_threat(cast(str, threat))
    if not isinstance(found, Ball):
        raise ThreatError(
            f"The threat {found.describe()} is not a norm ball. Bounds exist for linf, l2, l1, l0."
        )
    return found


def _domain(model: Network, given: Domain | tuple[float, float] | None) -> Domain:
    if given is not None:
        return given if isinstance(given, Domain) else Domain(*given)
    return model.domain if isinstance(model, Model) else Domain()
