"""Errors of graphs: what could not be captured, where, and what to do about it."""

from holdfast.errors import GraphError, UnsupportedOperatorError

__all__ = ["GraphError", "UnsupportedOperatorError"]
