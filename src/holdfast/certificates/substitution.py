"""Inputs of several networks written by fewer free ones, checked against what a clause says.

A proof may claim that in each clause inputs ``x`` are ``z[base] + z[shift]``. That loses no input
of the clause when every z can be told from x (the first x at ``base``, or what another x exceeds it
by) and inputs written alike are equal in the clause. Ranges of z follow from the clause's rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.exact import StrictRow, Variable

Array = NDArray[np.float64]
Limit = Fraction | float
"""Exact, or infinite."""
ROUNDS = 10
"""Times that ranges are carried through the rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Substitution:
    """Claims ``x[k] = z[base[k]] + z[shift[k]]``, without the second where it is -1."""

    base: NDArray[np.int64]
    shift: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Length of z."""
        return int(max(self.base.max(), self.shift.max())) + 1

    def check(self, n_inputs: int) -> None:
        """Refuse arrays that say nothing sensible.

        Raises:
            CertificateError: other lengths, or a z that no x tells.
        """
        if not self.base.shape == self.shift.shape == (n_inputs,):
            raise CertificateError("the substitution is not about the inputs of the property")
        if self.base.min() < 0 or self.shift.min() < -1:
            raise CertificateError("the substitution names inputs that do not exist")
        leaders = set(self.base[self.shift < 0].tolist())
        moves = {(int(s), int(b)) for b, s in zip(self.base, self.shift, strict=True) if s >= 0}
        shifts = [s for s, _ in moves]
        if not set(self.base.tolist()) <= leaders or leaders & set(shifts):
            raise CertificateError("the substitution uses a value that no input tells")
        if len(set(shifts)) != len(shifts) or len(leaders) + len(shifts) != self.size:
            raise CertificateError("the substitution uses a value for several differences, or none")

    def rows(self, rows: Sequence[StrictRow]) -> list[StrictRow]:
        """The rows over z.

        Raises:
            CertificateError: inputs that are written alike are not equal in these rows.
        """
        equal = _classes(rows, len(self.base))
        first: dict[tuple[int, int], int] = {}
        for k, key in enumerate(zip(self.base.tolist(), self.shift.tolist(), strict=True)):
            if equal[first.setdefault(key, k)] != equal[k]:
                raise CertificateError(
                    f"inputs {first[key]} and {k} are not equal in the property, as claimed"
                )
        return [(self._over_free(terms), constant, strict) for terms, constant, strict in rows]

    def _over_free(self, terms: Mapping[Variable, Fraction]) -> dict[Variable, Fraction]:
        found: dict[Variable, Fraction] = {}
        for (letter, k), c in terms.items():
            places = [k] if letter == "y" else [int(self.base[k]), int(self.shift[k])]
            for place in places:
                if place >= 0:
                    found[letter, place] = found.get((letter, place), Fraction(0)) + c
        return {v: c for v, c in found.items() if c}

    def box(self, lower: Array, upper: Array, rows: Sequence[StrictRow]) -> tuple[Array, Array]:
        """Ranges of z that the rows over inputs leave of a box, rounded outwards."""
        low: list[Limit] = [_exact(v) for v in lower.tolist()]
        high: list[Limit] = [_exact(v) for v in upper.tolist()]
        about = [(t, d) for t, d, _ in rows if t and all(letter == "x" for letter, _ in t)]
        for _ in range(ROUNDS):
            before = list(low), list(high)
            for terms, constant in about:
                _narrow(terms, constant, low, high)
            if before == (low, high):
                break
        return np.array([_outward(v, -1) for v in low]), np.array([_outward(v, 1) for v in high])


def _narrow(
    terms: Mapping[Variable, Fraction], constant: Fraction, low: list[Limit], high: list[Limit]
) -> None:
    """Limit each input of a row by what the others leave it, in place."""
    for (_, k), c in terms.items():
        rest: Limit = constant
        for (_, other), factor in terms.items():
            if other != k:
                rest += factor * (low[other] if factor > 0 else high[other])
        if c > 0:
            high[k] = min(high[k], -rest / c)
        else:
            low[k] = max(low[k], -rest / c)


def _classes(rows: Sequence[StrictRow], n: int) -> list[int]:
    """For every input the first that the rows say is equal to it, by ``<=`` both ways."""
    below = {_ordered(terms) for terms, constant, _ in rows if constant == 0}
    first = list(range(n))
    for i, j in filter(None, below):
        if (j, i) in below:
            a, b = sorted((first[i], first[j]))
            first = [a if f == b else f for f in first]
    return first


def _ordered(terms: Mapping[Variable, Fraction]) -> tuple[int, int] | None:
    """The inputs ``(i, j)`` of a row ``c (x_i - x_j) <= 0`` with a positive c."""
    match sorted(terms.items(), key=lambda item: item[1]):
        case [(("x", j), d), (("x", i), c)] if c == -d:
            return i, j
    return None


def _exact(value: float) -> Limit:
    return Fraction(value) if math.isfinite(value) else value


def _outward(value: Limit, sign: int) -> float:
    near = float(value)
    if math.isfinite(near) and (Fraction(near) - value) * sign < 0:
        return math.nextafter(near, sign * math.inf)
    return near
