"""Powers, roots and the reciprocal."""

from __future__ import annotations

from holdfast.graphs.builder import Call, Ref


def power(call: Call, ref: Ref, exponent: float) -> Ref:
    raise call.error("todo")


def reciprocal(call: Call, ref: Ref) -> Ref:
    raise call.error("todo")
