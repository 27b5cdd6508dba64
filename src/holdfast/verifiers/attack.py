"""Searches a property's input boxes for violations: samples first, then projected gradients."""
# ruff: noqa: N806 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.problem import Property


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """The clauses of a property as tensors, padded to equal numbers of rows by repetition.

    Attributes:
        lower: Least inputs ``(c, p)``.
        upper: Greatest inputs ``(c, p)``.
        C: Coefficients of outputs ``(c, r, m)``.
        D: Coefficients of inputs ``(c, r, p)`` or None where no clause reads inputs.
        d: Constants ``(c, r)``.
    """

    lower: Tensor
    upper: Tensor
    C: Tensor
    D: Tensor | None
    d: Tensor

    @classmethod
    def of(cls, prop: Property, dtype: torch.dtype) -> Rows:
        """All clauses of a property."""
        most = max(len(c.d) for c in prop.clauses)
        pick = [torch.arange(most).clamp(max=len(c.d) - 1) for c in prop.clauses]

        def stack(name: str) -> Tensor:
            parts = [torch.as_tensor(getattr(c, name), dtype=dtype) for c in prop.clauses]
            if name in ("C", "d"):
                parts = [t[i] for t, i in zip(parts, pick, strict=True)]
            return torch.stack(parts)

        D = None
        if any(c.D is not None for c in prop.clauses):
            zeros = [torch.zeros(most, len(c.lower), dtype=dtype) for c in prop.clauses]
            D = torch.stack(
                [
                    z if c.D is None else torch.as_tensor(c.D, dtype=dtype)[i]
                    for c, i, z in zip(prop.clauses, pick, zeros, strict=True)
                ]
            )
        return cls(stack("lower"), stack("upper"), stack("C"), D, stack("d"))

    def values(self, clause: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Row values ``(n, r)`` of flat inputs and outputs for the clause of each."""
        total = (self.C[clause] @ y.unsqueeze(2)).squeeze(2) + self.d[clause]
        if self.D is not None:
            total = total + (self.D[clause] @ x.unsqueeze(2)).squeeze(2)
        return total


@torch.enable_grad()
def descend(
    graph: Graph, rows: Rows, clause: Tensor, x: Tensor, lower: Tensor, upper: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Projected sign descent on the largest row of each start; stops when one violates.

    Args:
        graph: The network.
        rows: The property.
        clause: Clause of each start ``(n,)``.
        x: Starts ``(n, p)``.
        lower: Box of each start ``(n, p)``.
        upper: Box of each start.
        steps: At most so many gradients.

    Returns:
        The best point of every start ``(n, p)`` and its largest row ``(n,)``.
    """
    width = upper - lower
    best, best_value = x, torch.full_like(x[:, 0], torch.inf)
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        y = flattened(graph(x.reshape(-1, *graph.input_shape)))
        value = rows.values(clause, x, y).amax(1)
        better = value.detach() < best_value
        best = torch.where(better.unsqueeze(1), x.detach(), best)
        best_value = torch.where(better, value.detach(), best_value)
        if step == steps or bool((best_value <= 0).any()):
            break
        (gradient,) = torch.autograd.grad(value.sum(), x)
        size = 0.25 * (0.02 / 0.25) ** (step / max(1, steps - 1))
        x = torch.minimum(torch.maximum(x - size * width * gradient.sign(), lower), upper)
    return best, best_value


def starts(rows: Rows, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, corners and uniform points of every clause's box: clause, x and shares."""
    generator = torch.Generator().manual_seed(seed)
    n_clauses, p = rows.lower.shape
    clause = torch.arange(n_clauses).repeat_interleave(count)
    share = torch.rand(n_clauses * count, p, generator=generator, dtype=rows.lower.dtype)
    corner = torch.arange(len(share)) % 2 == 1
    share = torch.where(corner.unsqueeze(1), share.round(), share)
    share[::count] = 0.5
    return clause, rows.lower[clause] + share * (rows.upper - rows.lower)[clause], share
