"""Inputs of several networks that are tied to each other, written by fewer free ones.

A property of several networks says how their inputs hang together: equal, or near each other. As
rows beside a box of all inputs such constraints would be lost on whoever bounds one box and one row
at a time. So inputs ``x`` are written as ``x = z[base] + z[shift]`` with free ``z`` in a box: an
input that equals another shares its ``z``, and one whose distance to another is limited is that
other plus a distance of its own. What this does not cover stays a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from holdfast.properties.formula import Atom, Bound, Row, outward

Limit = Fraction | float
"""Exact, or infinite."""
Pair = tuple[int, int]

ROUNDS = 10
"""Times that limits are carried from input to input; fewer leave a larger box."""
MAX_INPUT_ROWS = 64
"""Rows over inputs alone that a clause keeps; without them its set is larger, never smaller."""


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """How inputs ``x (p,)`` follow from free ones ``z (q,)``.

    Attributes:
        base: position in z, ``(p,)``.
        shift: position in z of what is added, ``(p,)``, -1 for nothing.
        lower: least z, ``(q,)``, exact or infinite.
        upper: greatest z, ``(q,)``.
    """

    base: NDArray[np.int64]
    shift: NDArray[np.int64]
    lower: tuple[Limit, ...]
    upper: tuple[Limit, ...]

    @property
    def is_trivial(self) -> bool:
        """Whether every input is free."""
        return len(self.lower) == len(self.base) and bool((self.shift < 0).all())

    def bounds(self) -> Iterator[Bound]:
        """The box of z, rounded outwards."""
        for upper, limits in ((False, self.lower), (True, self.upper)):
            for index, limit in enumerate(limits):
                if isinstance(limit, Fraction):
                    yield Bound(index, upper, outward(limit, upper))

    def rewritten(self, atoms: Iterable[Atom]) -> list[Atom]:
        """The same conjunction over z; rows over inputs that the box implies are left out."""
        groups: tuple[list[Atom], ...] = [], [], []
        for atom in map(self._over_free, atoms):
            if self._is_needed(atom):
                groups[_group(atom)].append(atom)
        found, single, several = groups
        return found + single + (several if len(several) <= MAX_INPUT_ROWS else [])

    def _is_needed(self, atom: Atom) -> bool:
        """Whether it may say more than the box; limits of one variable and outputs always may."""
        if isinstance(atom, Bound) or len(atom.terms) == 1 or min(atom.terms, default=0) < 0:
            return True
        return not self._is_implied(atom)

    def _over_free(self, atom: Atom) -> Atom:
        if isinstance(atom, Bound):
            base, shift = int(self.base[atom.index]), int(self.shift[atom.index])
            if shift < 0:
                return Bound(base, atom.upper, atom.value)
            sign = Fraction(1 if atom.upper else -1)
            return Row({base: sign, shift: sign}, -sign * Fraction(atom.value))
        terms: dict[int, Fraction] = {}
        for variable, coefficient in atom.terms.items():
            for place in self._places(variable):
                terms[place] = terms.get(place, Fraction(0)) + coefficient
        return Row({v: c for v, c in terms.items() if c}, atom.constant, atom.strict)

    def _places(self, variable: int) -> Iterator[int]:
        if variable < 0:
            yield variable
            return
        yield int(self.base[variable])
        if self.shift[variable] >= 0:
            yield int(self.shift[variable])

    def _is_implied(self, row: Row) -> bool:
        most: Limit = row.constant
        for variable, c in row.terms.items():
            most += c * self.upper[variable] if c > 0 else c * self.lower[variable]
        return most < 0 or (most == 0 and not row.strict)


def _group(atom: Atom) -> int:
    """1 and 2 for rows over one input and over several, 0 for all else."""
    if isinstance(atom, Bound) or min(atom.terms, default=-1) < 0:
        return 0
    return min(len(atom.terms), 2)


def couple(rows: Iterable[Row], bounds: Iterable[Bound], n_inputs: int) -> Coupling:
    """The coupling that follows from a conjunction.

    Args:
        rows: all of them hold; only those over one or two inputs are made use of.
        bounds: limits of single inputs, which hold too.
        n_inputs: length of x.
    """
    ranges = _Ranges(n_inputs)
    for bound in bounds:
        ranges.cut(bound.index, Fraction(bound.value), bound.upper)
    for row in rows:
        ranges.read(row)
    leaders = ranges.merged()
    ranges.narrow()
    shifted = ranges.shifts()
    return _numbered(leaders, shifted, ranges)


@dataclass(slots=True)
class _Ranges:
    """Limits of inputs, and of differences ``x_j - x_i`` for ``i < j``."""

    n: int
    lower: list[Limit] = field(init=False)
    upper: list[Limit] = field(init=False)
    apart: dict[Pair, tuple[Limit, Limit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lower, self.upper = [-math.inf] * self.n, [math.inf] * self.n

    def cut(self, index: int, value: Limit, upper: bool) -> None:
        if upper:
            self.upper[index] = min(self.upper[index], value)
        else:
            self.lower[index] = max(self.lower[index], value)

    def limit(self, pair: Pair, least: Limit, greatest: Limit) -> None:
        i, j = pair
        if i > j:
            i, j, least, greatest = j, i, -greatest, -least
        old = self.apart.get((i, j), (-math.inf, math.inf))
        self.apart[i, j] = max(old[0], least), min(old[1], greatest)

    def read(self, row: Row) -> None:
        """Takes in ``c x <= -d`` and ``c (x_j - x_i) <= -d``; other rows say nothing here."""
        match sorted(row.terms.items()):
            case [(i, c)] if i >= 0:
                self.cut(i, -row.constant / c, c > 0)
            case [(i, other), (j, c)] if i >= 0 and c == -other:
                value = -row.constant / c
                self.limit((i, j), *((-math.inf, value) if c > 0 else (value, math.inf)))

    def merged(self) -> list[int]:
        """For every input the first that equals it; limits are then those of the first."""
        leaders = list(range(self.n))

        def first(i: int) -> int:
            while leaders[i] != i:
                i = leaders[i]
            return i

        for (i, j), (least, greatest) in self.apart.items():
            if least == greatest == 0:
                a, b = sorted((first(i), first(j)))
                leaders[b] = a
        leaders = [first(i) for i in range(self.n)]
        for i, leader in enumerate(leaders):
            self.cut(leader, self.lower[i], upper=False)
            self.cut(leader, self.upper[i], upper=True)
        apart, self.apart = self.apart, {}
        for (i, j), limits in apart.items():
            if leaders[i] != leaders[j]:
                self.limit((leaders[i], leaders[j]), *limits)
        return leaders

    def narrow(self) -> None:
        """Carries limits over: ``x_j = x_i + distance`` bounds each by the other."""
        for _ in range(ROUNDS):
            before = list(self.lower), list(self.upper)
            for (i, j), (least, greatest) in self.apart.items():
                self.cut(j, self.lower[i] + least, upper=False)
                self.cut(j, self.upper[i] + greatest, upper=True)
                self.cut(i, self.lower[j] - greatest, upper=False)
                self.cut(i, self.upper[j] - least, upper=True)
            if before == (self.lower, self.upper):
                break

    def shifts(self) -> dict[int, tuple[int, Limit, Limit]]:
        """Inputs to be written as an earlier one plus a distance: that one and its limits.

        Pairs come in the order of their first input, so none that is counted from is moved later.
        """
        found: dict[int, tuple[int, Limit, Limit]] = {}
        for (i, j), limits in sorted(self.apart.items()):
            if i in found or j in found or self.is_fixed(i) or self.is_fixed(j):
                continue
            widest = self.lower[j] - self.upper[i], self.upper[j] - self.lower[i]
            least, greatest = max(limits[0], widest[0]), min(limits[1], widest[1])
            if (least, greatest) != widest and math.isfinite(least) and math.isfinite(greatest):
                found[j] = i, least, greatest
        return found

    def is_fixed(self, i: int) -> bool:
        return self.lower[i] == self.upper[i]


def _numbered(
    leaders: list[int], shifted: Mapping[int, tuple[int, Limit, Limit]], ranges: _Ranges
) -> Coupling:
    count = itertools.count()
    place = {i: next(count) for i, leader in enumerate(leaders) if i == leader}
    base = [place[shifted[k][0] if k in shifted else k] for k in leaders]
    shift = [place[k] if k in shifted else -1 for k in leaders]
    lower = tuple(shifted[i][1] if i in shifted else ranges.lower[i] for i in place)
    upper = tuple(shifted[i][2] if i in shifted else ranges.upper[i] for i in place)
    return Coupling(np.array(base), np.array(shift), lower, upper)
