"""Counterexamples are read back as they were written, and judged by the text."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.properties import (
    PropertyError,
    format_counterexample,
    holds,
    parse_counterexample,
    parse_vnnlib,
)

ONE = (
    "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
    "(assert (<= X_0 0.1))(assert (>= X_0 0))(assert (<= X_1 1))"
    "(assert (>= X_1 0))(assert (< Y_0 1))"
)
TWO = (
    "(declare-network f (declare-input A Real [2,2]) (declare-output B float32 [1]))"
    "(assert (<= A[0,0] B[0]))"
)


@pytest.mark.parametrize(("text", "sizes"), [(ONE, (2, 1)), (TWO, (4, 1))])
def test_round_trip_keeps_every_bit(text: str, sizes: tuple[int, int]):
    query = parse_vnnlib(text)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=size).astype(np.float32) for size in sizes)
    again = parse_counterexample(query, format_counterexample(query, x, y))
    np.testing.assert_array_equal(again[0], x.astype(float))
    np.testing.assert_array_equal(again[1], y.astype(float))


def test_the_written_forms():
    assert (
        format_counterexample(parse_vnnlib(ONE), [0.5, 1], [-2])
        == "((X_0 0.5)\n (X_1 1.0)\n (Y_0 -2.0))"
    )
    written = format_counterexample(parse_vnnlib(TWO), [1, 2, 3, 4], [5])
    assert written.splitlines()[0] == "A Real [2,2]"
    assert written.splitlines()[5:] == ["B float32 [1]", "5.0"]


def test_the_text_judges_without_tolerance():
    assert holds(ONE, [0.0625, 0], [0.5])
    assert not holds(ONE, [np.float32(0.1), 0], [0.5])  # the float32 next to 0.1 lies above it
    assert not holds(ONE, [0.0625, 0], [1.0])
    with pytest.raises(ValueError, match="the point has 1 and 1"):
        holds(ONE, [0], [0])


def test_a_bound_printed_from_float32_admits_that_float32():
    bound = np.float32(0.03)  # 0.0299999993294477462768..., printed with 17 digits is below that
    text = ONE.replace("(<= X_0 0.1)", f"(<= X_0 {float(bound)!r})")
    assert holds(text, [bound, 0], [0.5])
    assert not holds(text, [np.nextafter(bound, np.float32(1)), 0], [0.5])


@pytest.mark.parametrize(
    "text", ["((X_0 1) (Y_0 1))", "((X_0 1) (X_0 1) (X_1 0) (Y_0 1))", "((X_9 1))"]
)
def test_broken_assignments_are_refused(text: str):
    with pytest.raises(PropertyError):
        parse_counterexample(parse_vnnlib(ONE), text)
