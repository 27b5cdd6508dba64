"""Which samples of a batch keep their class within a norm ball: proven, refuted or open."""
# ruff: noqa: N803, N806 - C is the matrix of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.graphs.graph import Graph
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.bounds import bounds, margins
from holdfast.verifiers.problem import Clause, Property, Status
from holdfast.verifiers.regions import Norm
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
    """

    status: Status
    margin: float
    x_adv: Tensor | None = None


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
        norm: The norm; branch and bound needs ``linf``.
        effort: ``fast`` stops after CROWN, ``standard`` after optimised slopes, ``thorough``
            goes on to branch and bound (linf).
        domain: Least and greatest input value.
        timeout_s: Seconds of branch and bound per sample.

    Raises:
        GraphError: The network cannot be captured.
        ValueError: Inputs outside the domain, negative ``eps`` or unknown norm.
    """
    graph = network if isinstance(network, Graph) else capture(network, x, fold=False)
    C = margins(y, graph.nodes[-1].size)
    with torch.no_grad():
        margin = bounds(graph, x, eps, norm, C=C, domain=domain).lower.amin(1)
        if effort != "fast":
            left = (margin <= 0).nonzero().squeeze(1)
            for i in left.tolist():
                one = slice(i, i + 1)
                better = bounds(
                    graph, x[one], eps, norm, C=C[one], domain=domain, method="alpha-crown"
                )
                margin[one] = torch.maximum(margin[one], better.lower.amin(1))
    found = [Certified("unsat" if m > 0 else "unknown", m) for m in margin.tolist()]
    if effort == "thorough" and norm == "linf":
        for i in (margin <= 0).nonzero().flatten().tolist():
            found[i] = _search(graph, x[i], C[i], eps, domain, timeout_s, found[i].margin)
    return found


def _search(
    graph: Graph,
    x: Tensor,
    C: Tensor,
    eps: float,
    domain: tuple[float, float],
    timeout_s: float,
    margin: float,
) -> Certified:
    """Branch and bound on one sample: any non-positive margin is a violation."""
    flat = x.detach().double().flatten().numpy()
    lower, upper = np.maximum(flat - eps, domain[0]), np.minimum(flat + eps, domain[1])
    rows = C.double().numpy()
    clauses = tuple(Clause(lower, upper, r[None], np.zeros(1)) for r in rows)
    verdict = verify(graph, Property(clauses), timeout_s=timeout_s)
    if verdict.counterexample is not None:
        return Certified("sat", margin, torch.from_numpy(verdict.counterexample.x).reshape(x.shape))
    proven = max(margin, 0.0) if verdict.status == "unsat" else margin
    return Certified(verdict.status, proven)
