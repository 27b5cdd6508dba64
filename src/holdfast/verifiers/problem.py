"""What a verifier is asked and what it answers: properties, verdicts and certificate data.

A property lists the ways in which it can be violated. Each is a ``Clause``: an input box and
linear rows over outputs (and inputs) that all have to be at most zero at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

Status = Literal["sat", "unsat", "unknown", "timeout"]
FloatArray = NDArray[np.float64]
Values = NDArray[np.float32 | np.float64]
"""Outputs of deployed networks."""


@final
@dataclass(frozen=True, slots=True)
class Clause:
    """One way to violate a property: ``lower <= x <= upper`` and all rows ``C y + D x + d <= 0``.

    Attributes:
        lower: Least inputs, ``(p,)``.
        upper: Greatest inputs, ``(p,)``.
        C: Coefficients of the outputs, ``(r, m)``.
        d: Constants, ``(r,)``.
        D: Coefficients of the inputs, ``(r, p)``, or None for zero.
        strict: Rows that must be ``< 0`` instead of ``<= 0``, ``(r,)``, or None for no row.
    """

    lower: FloatArray
    upper: FloatArray
    C: FloatArray
    d: FloatArray
    D: FloatArray | None = None
    strict: NDArray[np.bool_] | None = None

    def rows(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Values of the rows at inputs ``x (p,)`` and outputs ``y (m,)``: ``(r,)``."""
        values = self.C @ y + self.d
        return values if self.D is None else values + self.D @ x

    def is_violated(self, x: FloatArray, y: FloatArray) -> bool:
        """Whether every row holds at ``x`` and ``y``; the box is not looked at."""
        values = self.rows(x, y)
        if self.strict is None:
            return bool((values <= 0).all())
        return bool(np.where(self.strict, values < 0, values <= 0).all())


@final
@dataclass(frozen=True, slots=True)
class Property:
    """A property of a network, violated when any of its clauses is."""

    clauses: tuple[Clause, ...]


@final
@dataclass(frozen=True, slots=True)
class Split:
    """The value of ``node`` at flat position ``neuron`` is ``>= point`` (above) or ``<= point``."""

    node: int
    neuron: int
    point: float
    above: bool


@final
@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of a clause's input set on which ``weights @ rows`` is proven to be positive."""

    clause: int
    lower: FloatArray
    upper: FloatArray
    weights: FloatArray
    value: float
    splits: tuple[Split, ...] = ()
    slopes: Mapping[int, FloatArray] = field(default_factory=dict)
    multipliers: tuple[float, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """What a checker needs to derive ``unsat`` again; see docs/design/verifier-interfaces.md."""

    leaves: tuple[Leaf, ...]
    input_splits: bool
    bounds: Mapping[int, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    bound_slopes: Mapping[int, Mapping[int, FloatArray]] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Counterexample:
    """A violating input in float32, replayed: the outputs are those of the deployed network."""

    x: NDArray[np.float32]
    y: Values
    clause: int
    rounded: int = 0


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a property."""

    status: Status
    counterexample: Counterexample | None = None
    certificate: Certificate | None = None
    seconds: float = 0.0
    domains: int = 0
    lower: float = float("-inf")
    reason: str = ""
