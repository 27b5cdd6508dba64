"""Which samples of a batch keep their class within a norm ball: proven, refuted or open."""
# ruff: noqa: N803, N806 - C is the matrix of the literature

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.graphs.graph import Graph
from holdfast.graphs.shapes import flattened
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.bounds import bounds, lower_over, margins
from holdfast.verifiers.deployed import float32_error
from holdfast.verifiers.problem import Clause, Property, Status
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BallRegion, Norm, threat_region
from holdfast.verifiers.verify import verify

Effort = Literal["fast", "standard", "thorough"]


@final
@dataclass(frozen=True, slots=True)
class Certified:
    """What is known of one sample.

    Attributes:
        status: ``unsat`` when no allowed change alters the class, ``sat`` when ``x_adv`` does.
        margin: Proven lower bound of the least margin over all other classes; a search by branch
            and bound proves its sign only, and then raises this to at least zero.
        x_adv: The counterexample in the shape of the input, or None.
        rounding: How far margins of the network as it runs in float32 can be from those that were
            proven; infinite where that is not known.
    """

    status: Status
    margin: float
    x_adv: Tensor | None = None
    rounding: float = math.inf

    @property
    def covers_float32(self) -> bool:
        """Whether the proof also holds for the deployed float32 network, see ``deployed``."""
        return self.status == "unsat" and self.margin > self.rounding


def certify(
    network: nn.Module | Graph,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: Norm = "linf",
    *,
    effort: Effort = "standard",
    domain: tuple[float, float] = (0.0, 1.0),
    timeout_s: float = 30.0,
) -> list[Certified]:
    """Proves for each sample that its class cannot change, with the cheapest bounds that do.

    Args:
        network: Module or graph that ends in logits.
        x: Inputs ``(n, *shape)``.
        y: Classes ``(n,)``.
        eps: Radius.
        norm: The norm.
        effort: ``fast`` stops after CROWN, ``standard`` after optimised slopes and envelopes of
            the first layer, ``thorough`` goes on to branch and bound, which finds counterexamples
            for ``linf`` only.
        domain: Least and greatest input value.
        timeout_s: Seconds of branch and bound per sample.

    Raises:
        GraphError: The network cannot be captured.
        InputError: Inputs outside the domain, negative ``eps`` or unknown norm.
    """
    graph = network if isinstance(network, Graph) else capture(network, x, fold=False)
    C = margins(y, graph.nodes[-1].size)
    with torch.no_grad():
        margin = bounds(graph, x, eps, norm, C=C, domain=domain).lower.amin(1)
        if effort != "fast":
            exact = graph.to(torch.float64, x.device)
            left = (margin <= 0).nonzero().squeeze(1)
            for i in left.tolist():
                one = slice(i, i + 1)
                region = threat_region(x[one].double(), eps, norm, *domain)
                better, _ = lower_over(exact, region, C[one].double(), "alpha-crown", planes=True)
                margin[one] = torch.maximum(margin[one], better.amin(1))
        slack = _rounding(graph, x, eps, norm, domain)
    found = [
        Certified("unsat" if m > 0 else "unknown", m, rounding=r)
        for m, r in zip(margin.tolist(), slack.tolist(), strict=True)
    ]
    if effort == "thorough":
        for i in (margin <= 0).nonzero().flatten().tolist():
            ball = None
            if norm != "linf":
                region = threat_region(x[i : i + 1].double(), eps, norm, *domain)
                assert isinstance(region, BallRegion)
                ball = region
            prop = _property(x[i], C[i], eps if norm == "linf" else np.inf, domain)
            searched = _search(graph, x[i], prop, ball, timeout_s, found[i].margin)
            found[i] = replace(searched, rounding=found[i].rounding)
    return found


def _property(x: Tensor, C: Tensor, eps: float, domain: tuple[float, float]) -> Property:
    """Any non-positive margin within the box is a violation."""
    flat = x.detach().double().flatten().numpy()
    lower, upper = np.maximum(flat - eps, domain[0]), np.minimum(flat + eps, domain[1])
    rows = C.double().numpy()
    return Property(tuple(Clause(lower, upper, r[None], np.zeros(1)) for r in rows))


def _rounding(
    graph: Graph, x: Tensor, eps: float, norm: Norm, domain: tuple[float, float]
) -> Tensor:
    """Largest error ``(n,)`` of a margin in float32, from intervals; see ``deployed``."""
    exact = graph.to(torch.float64, x.device)
    region = threat_region(x.double(), eps, norm, *domain)
    error = float32_error(exact, propagate(exact, region, "interval").boxes)
    if error is None:
        return x.new_full((len(x),), torch.inf, dtype=torch.float64)
    # A margin is the difference of two logits, compared by the user without further rounding.
    return flattened(error).topk(min(2, error[0].numel()), 1).values.sum(1).nan_to_num(torch.inf)


def _search(
    graph: Graph,
    x: Tensor,
    prop: Property,
    ball: BallRegion | None,
    timeout_s: float,
    margin: float,
) -> Certified:
    """Branch and bound on one sample."""
    verdict = verify(graph, prop, timeout_s=timeout_s, ball=ball)
    if verdict.counterexample is not None:
        return Certified("sat", margin, torch.from_numpy(verdict.counterexample.x).reshape(x.shape))
    proven = max(margin, 0.0) if verdict.status == "unsat" else margin
    return Certified(verdict.status, proven)
