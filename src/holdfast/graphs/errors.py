"""Errors of graphs: what could not be captured, where, and what to do about it."""

from __future__ import annotations


class GraphError(ValueError):
    """A network cannot be brought into a graph, or a graph is used in a way it cannot serve."""


class UnsupportedOperatorError(GraphError):
    """An operator has no bounds; names the operator, its place in the model and a way out."""

    def __init__(self, operator: str, place: str, advice: str = "") -> None:
        self.operator, self.place = operator, place
        advice = advice or (
            "Replace it by supported operators, or add one file to holdfast/graphs/operators "
            "with its run, interval and relaxation."
        )
        super().__init__(f"operator {operator!r} at {place!r} is not supported. {advice}")
