"""What all searches over one property share: the network, the clock, candidates and leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from holdfast.graphs.graph import Graph
from holdfast.graphs.shapes import flattened
from holdfast.verifiers.attack import Rows
from holdfast.verifiers.crown import gamma
from holdfast.verifiers.problem import Counterexample, FloatArray, Leaf, Property
from holdfast.verifiers.regions import BallRegion
from holdfast.verifiers.replay import Confirm


def charged(rows: Rows, unit: float) -> Rows:
    """Constants lowered by the rounding errors of the rows' own terms ``D x + d``.

    Operators charge for what they add; these terms belong to none.
    """
    size = rows.d.abs()
    if rows.D is not None:
        largest = torch.maximum(rows.lower.abs(), rows.upper.abs())
        size = size + (rows.D.abs() @ largest.unsqueeze(2)).squeeze(2)
    return replace(rows, d=rows.d - unit * size)


@final
@dataclass(slots=True)
class Search:
    """The state of deciding one property.

    Attributes:
        graph: The network in float64.
        prop: The property.
        confirm: The counterexample of a clause at an input, if the deployed network shows one.
        deadline: Value of the clock at which to give up.
        keep_leaves: Collect certificate data.
        look: Look for counterexamples; bounds alone decide without.
        seed: Of all random choices.
        clock: Seconds since some moment.
        ball: The inputs, where they are a norm ball within the property's box.
    """

    graph: Graph
    prop: Property
    confirm: Confirm
    deadline: float
    keep_leaves: bool = False
    look: bool = True
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    ball: BallRegion | None = None
    leaves: list[Leaf] = field(default_factory=list)
    domains: int = 0
    lower: float = float("inf")
    input_splits: bool = True
    bounds: dict[int, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    single: Graph = field(init=False)
    rows: Rows = field(init=False)
    rows32: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.single = self.graph.to(torch.float32)
        self.rows = charged(Rows.of(self.prop, torch.float64), 2 * gamma(self.graph, torch.float64))
        self.rows32 = Rows.of(self.prop, torch.float32)

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.deadline

    @torch.no_grad()
    def check(self, clause: Tensor, x: Tensor) -> Counterexample | None:
        """Replays those of the points ``x (n, p)`` that violate their clause in this process."""
        if not self.look or not len(x):
            return None
        worst = self.worst(clause, x)
        # Slightly positive values may still be violations in the runtime's own rounding.
        order = worst.argsort()[:3]
        for i in order.tolist():
            if float(worst[i]) <= 0:
                found = self.confirm(int(clause[i]), x[i].double().numpy())
                if found is not None:
                    return found
        return None

    @torch.no_grad()
    def worst(self, clause: Tensor, x: Tensor) -> Tensor:
        """The greatest row of the clause of each point ``x (n, p)`` in float32 ``(n,)``."""
        single = x.float()
        y = flattened(self.single(single.reshape(-1, *self.graph.input_shape)))
        return self.rows32.values(clause, single, y).amax(1)
