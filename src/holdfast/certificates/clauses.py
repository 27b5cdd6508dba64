"""The clauses that a proof has to exclude, taken from the exact reading of the property's text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.exact import StrictRow, exact_clauses, read_exact
from holdfast.certificates.substitution import Substitution

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """A superset of one clause: the box and the rows ``C y + D x + d <= 0`` of its violation.

    Attributes:
        lower: least inputs, ``(p,)``, rounded down.
        upper: greatest inputs, ``(p,)``, rounded up.
        of_outputs: C, ``(r, m)``, exact.
        of_inputs: D, ``(r, p)``, exact.
        constants: d, ``(r,)``, rounded down.
    """

    lower: Array
    upper: Array
    of_outputs: Array
    of_inputs: Array
    constants: Array


def goals(text: str, substitution: Substitution | None = None) -> tuple[Goal, ...]:
    """The clauses of a VNN-LIB text that do not contradict themselves, in the order of the text.

    Args:
        text: the property.
        substitution: by what its inputs are written; the boxes and D are then about that.

    Raises:
        CertificateError: the text cannot be read exactly, or the substitution misses inputs.
    """
    query = read_exact(text)
    found = []
    for rows in exact_clauses(query):
        goal = _goal(rows, query.n_inputs, query.n_outputs)
        if goal is not None and substitution is not None:
            free = substitution.rows(rows)
            goal = _goal(free, substitution.size, query.n_outputs)
            if goal is not None:
                lower, upper = substitution.box(goal.lower, goal.upper, free)
                goal = replace(goal, lower=lower, upper=upper)
        if goal is not None:
            found.append(goal)
    return tuple(found)


def _goal(rows: Sequence[StrictRow], n_inputs: int, n_outputs: int) -> Goal | None:
    lower, upper = [-math.inf] * n_inputs, [math.inf] * n_inputs
    kept = []
    for terms, constant, strict in rows:
        variables = list(terms)
        if len(variables) == 1 and variables[0][0] == "x":
            index, coefficient = variables[0][1], terms[variables[0]]
            limit = _round(-constant / coefficient, up=coefficient > 0)
            if coefficient > 0:
                upper[index] = min(upper[index], limit)
            else:
                lower[index] = max(lower[index], limit)
            if not strict:
                continue
        kept.append((terms, constant, strict))
    if any(low > high for low, high in zip(lower, upper, strict=True)) or _contradict(kept):
        return None
    return _arrays(np.array(lower), np.array(upper), [row for row in kept if row[0]], n_outputs)


def _arrays(lower: Array, upper: Array, rows: Sequence[StrictRow], n_outputs: int) -> Goal:
    of_outputs, of_inputs = np.zeros((len(rows), n_outputs)), np.zeros((len(rows), len(lower)))
    constants = np.zeros(len(rows))
    for i, (terms, constant, _) in enumerate(rows):
        factor = 1
        if any(Fraction(float(c)) != c for c in terms.values()):
            factor = math.lcm(*(c.denominator for c in terms.values()))
        for (letter, index), coefficient in terms.items():
            exact = coefficient * factor
            if Fraction(float(exact)) != exact:
                raise CertificateError(f"coefficient {coefficient} has no exact float64")
            (of_inputs if letter == "x" else of_outputs)[i, index] = float(exact)
        constants[i] = _round(constant * factor, up=False)
    return Goal(lower, upper, of_outputs, of_inputs, constants)


def _round(value: Fraction, up: bool) -> float:
    near = float(value)
    if up and Fraction(near) < value:
        return math.nextafter(near, math.inf)
    return math.nextafter(near, -math.inf) if not up and Fraction(near) > value else near


def _contradict(rows: Sequence[StrictRow]) -> bool:
    """Whether a row without variables is false, or two opposite rows exclude each other."""
    largest: dict[tuple[object, ...], tuple[Fraction, bool]] = {}
    for terms, constant, strict in rows:
        if not terms:
            if constant > 0 or (strict and constant == 0):
                return True
            continue
        scale = abs(terms[min(terms)])
        key = tuple(sorted((v, c / scale) for v, c in terms.items()))
        mirrored = tuple(sorted((v, -c / scale) for v, c in terms.items()))
        mine = max((constant / scale, strict), largest.get(key, (constant / scale, strict)))
        largest[key] = mine
        if mirrored in largest:
            other = largest[mirrored]
            if mine[0] + other[0] > 0 or (mine[0] + other[0] == 0 and (mine[1] or other[1])):
                return True
    return False
