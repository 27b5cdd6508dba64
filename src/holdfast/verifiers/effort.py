"""How the search divides its effort between branching and bounds of single neurons.

Both are given equal efforts at first. Neither is better everywhere: in deep fully connected
networks bounds of neurons close properties that no tree would, in convolutional ones they gain
little. So what each made good of the worst bound decides how much the next turn of branching may
cost, against four times as much for the neurons.
"""

from __future__ import annotations

import math
from dataclasses import replace

from holdfast.graphs.graph import Graph
from holdfast.verifiers.alpha_crown import replace_boxes
from holdfast.verifiers.crown import State
from holdfast.verifiers.domains import CANDIDATES, Anchor, Domain

MORE = 4
"""How many times as much every turn of the neurons may cost."""


def gain(before: dict[int, float], after: dict[int, float]) -> float:
    """The share of the worst of several bounds (by clause) that has been made good."""
    worst = min(before.values(), default=0.0)
    return 1 - min(after.values(), default=0.0) / worst if worst < 0 else 0.0


def favour(branching: float, refining: float) -> float:
    """How many times as much branching may cost next, by what both gained at equal efforts."""
    if branching <= 0:
        return 1.0
    return min(max(branching / max(refining, 1e-9), 1 / MORE), MORE**2)


def share_bounds(graph: Graph, domains: list[Domain], state: State) -> None:
    """Cuts the boxes of domains with those that hold on the whole box."""
    cut: dict[Anchor, Anchor] = {}
    for domain in domains:
        old = domain.anchor
        if old not in cut:
            pairs = zip(old.state.boxes, state.boxes, strict=True)
            boxes = [one.intersect(other) for one, other in pairs]
            cut[old] = replace(old, state=replace_boxes(graph, old.state, boxes))
        domain.anchor = cut[old]


def lifetime(graph: Graph, state: State, steps: int) -> float:
    """So many splits that new bounds for one domain cost about as much as its descendants do."""
    sources = {i for k in graph.nodes if not k.op.is_affine for i in k.inputs}
    rows = sum(int((state.boxes[i].lower * state.boxes[i].upper < 0).sum()) for i in sources)
    # Two bounds of every loose value in float64, against passes in float32, of which
    # each gradient counts as two more.
    ratio = 4 * rows / (3 * steps + 2 * CANDIDATES)
    return math.ceil(math.log2(1 + ratio))
