"""Formulas over inputs and outputs: linear rows under and/or, multiplied out into clauses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from holdfast.verifiers.problem import Clause, FloatArray

Number = Fraction
"""Exact arithmetic: a property is never rounded before it is turned into a clause."""


@dataclass(frozen=True, slots=True)
class Bound:
    """``x[index] <= value`` (upper) or ``>= value``, the value already rounded outwards."""

    index: int
    upper: bool
    value: float


@dataclass(frozen=True, slots=True)
class Row:
    """``sum of coefficient * variable + constant <= 0`` (``< 0`` when strict).

    Variables are numbered from 0 for inputs and from -1 downwards for outputs.
    """

    terms: dict[int, Fraction]
    constant: Fraction
    strict: bool = False


ALWAYS = Row({}, Fraction(-1))
"""Holds everywhere: the row of a clause that constrains nothing but inputs."""


@dataclass(frozen=True, slots=True)
class And:
    """All of the parts hold."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the parts holds."""

    parts: tuple[Formula, ...]


Atom = Bound | Row
Formula = Bound | Row | And | Or


def outward(value: Fraction | Decimal, upper: bool) -> float:
    """The float64 next to ``value`` that is not below it (``upper``) or not above it."""
    near = float(value)
    exact = Decimal(near) if isinstance(value, Decimal) else Fraction(near)
    if upper and exact < value:
        return math.nextafter(near, math.inf)
    if not upper and exact > value:
        return math.nextafter(near, -math.inf)
    return near


def n_clauses(formula: Formula) -> int:
    """Number of clauses that multiplying out would give."""
    match formula:
        case And(parts):
            return math.prod(map(n_clauses, parts))
        case Or(parts):
            return sum(map(n_clauses, parts))
        case _:
            return 1


def clauses(formula: Formula) -> list[tuple[Atom, ...]]:
    """Multiply out: the formula is the disjunction of these conjunctions."""
    match formula:
        case Or(parts):
            return [clause for part in parts for clause in clauses(part)]
        case And(parts):
            found = [tuple(part for part in parts if isinstance(part, Atom))]
            for part in parts:
                if not isinstance(part, Atom):
                    found = [a + b for a in found for b in clauses(part)]
            return found
        case _:
            return [(formula,)]


@dataclass(slots=True)
class Assembler:
    """Turns conjunctions of atoms into the float64 clauses of a verifier."""

    n_inputs: int
    n_outputs: int
    base: tuple[FloatArray, FloatArray]
    is_exact: bool = True

    @classmethod
    def unbounded(cls, n_inputs: int, n_outputs: int) -> Assembler:
        """Without limits of inputs."""
        free = np.full(n_inputs, -math.inf), np.full(n_inputs, math.inf)
        return cls(n_inputs, n_outputs, free)

    def clauses(
        self, common: Sequence[Atom], conjunctions: Sequence[Sequence[Atom]]
    ) -> list[Clause | None]:
        """A clause for each conjunction within the box of the common atoms, or None."""
        base = self.clause(common)
        if base is None:
            return [None] * len(conjunctions)
        self.base = base.lower, base.upper
        return [self.clause(atoms) for atoms in conjunctions]

    def clause(self, atoms: Sequence[Atom]) -> Clause | None:
        """The clause of these atoms within the base box, or None when it contradicts itself."""
        bounds, rows = self.separate(atoms)
        lower, upper = box(self.base, bounds)
        if (lower > upper).any() or contradictory(rows):
            return None
        rows = [row for row in rows if row.terms] or [ALWAYS]
        of_outputs = np.zeros((len(rows), self.n_outputs))
        of_inputs = np.zeros((len(rows), self.n_inputs))
        constants = np.zeros(len(rows))
        strict = np.array([row.strict for row in rows], dtype=bool)
        for i, row in enumerate(map(self.scaled, rows)):
            for variable, coefficient in row.terms.items():
                if variable >= 0:
                    of_inputs[i, variable] = float(coefficient)
                else:
                    of_outputs[i, -1 - variable] = float(coefficient)
            constants[i] = outward(row.constant, upper=False)
        return Clause(
            *(lower, upper, of_outputs, constants),
            of_inputs if of_inputs.any() else None,
            strict if strict.any() else None,
        )

    def separate(self, atoms: Iterable[Atom]) -> tuple[list[Bound], list[Row]]:
        """Bounds of single inputs apart from rows; a strict bound is kept as a row as well."""
        bounds, rows = [], []
        for atom in atoms:
            if isinstance(atom, Bound):
                bounds.append(atom)
                continue
            if len(atom.terms) == 1 and (index := next(iter(atom.terms))) >= 0:
                upper = atom.terms[index] > 0
                limit = outward(-atom.constant / atom.terms[index], upper)
                bounds.append(Bound(index, upper, limit))
                if not atom.strict:
                    continue
            rows.append(atom)
        return bounds, rows

    def scaled(self, row: Row) -> Row:
        """The same row with coefficients that float64 holds, where a whole multiple has them."""
        if all(is_float(c) for c in row.terms.values()):
            return row
        factor = math.lcm(*(c.denominator for c in row.terms.values()))
        terms = {v: c * factor for v, c in row.terms.items()}
        if all(is_float(c) for c in terms.values()):
            return Row(terms, row.constant * factor, row.strict)
        self.is_exact = False
        return row


def is_float(value: Fraction) -> bool:
    """Whether float64 holds the value exactly."""
    return Fraction(float(value)) == value


def box(
    base: tuple[FloatArray, FloatArray], bounds: Sequence[Bound]
) -> tuple[FloatArray, FloatArray]:
    """``base`` cut with the bounds; ``base`` itself, not a copy, when there are none."""
    if not bounds:
        return base
    lower, upper = base[0].copy(), base[1].copy()
    for bound in bounds:
        if bound.upper:
            upper[bound.index] = min(upper[bound.index], bound.value)
        else:
            lower[bound.index] = max(lower[bound.index], bound.value)
    return lower, upper


def contradictory(rows: Sequence[Row]) -> bool:
    """Whether a row of constants is false or two rows of opposite coefficients exclude each other.

    Sound and incomplete: what it overlooks is left to the verifier.
    """
    least: dict[tuple[tuple[int, Fraction], ...], tuple[Fraction, bool]] = {}
    for row in rows:
        if not row.terms:
            if row.constant > 0 or (row.strict and row.constant == 0):
                return True
            continue
        scale = abs(row.terms[min(row.terms)])
        key = tuple(sorted((v, c / scale) for v, c in row.terms.items()))
        entry = (row.constant / scale, row.strict)
        least[key] = max(least.get(key, entry), entry)
    for key, (constant, strict) in least.items():
        if other := least.get(tuple((v, -c) for v, c in key)):
            total = constant + other[0]  # the two rows added: total <= 0 must hold
            if total > 0 or (total == 0 and (strict or other[1])):
                return True
    return False
