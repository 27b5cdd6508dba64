"""A second, slow and exact reading of VNN-LIB: counterexamples and proofs are judged by the text.

It shares no code with the parser that feeds the verifier and computes with fractions, so a mistake
of one shows against the other. A formula is ``("and" | "or", parts)`` or ``("<=" | "<", terms,
constant)`` for ``sum of coefficient * variable + constant <= 0``; a variable is ``("x", i)`` or
``("y", i)``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from holdfast.certificates.errors import CertificateError

Variable = tuple[str, int]
Terms = Mapping[Variable, Fraction]
Formula = tuple[Any, ...]
Row = tuple[Terms, Fraction]
StrictRow = tuple[Terms, Fraction, bool]

_LETTERS = {"declare-input": "x", "declare-hidden": "y", "declare-output": "y"}
MAX_CLAUSES = 200_000


@dataclass(frozen=True, slots=True)
class ExactNetwork:
    """A declared network: its file is that of ``same_as`` where this is given.

    ``inputs`` are ranges of the flat vector of all inputs, ``sizes`` the lengths of its values,
    ``hidden`` the names of those that come before the outputs.
    """

    name: str
    same_as: str | None
    inputs: tuple[range, ...]
    sizes: tuple[int, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExactQuery:
    """The assertions of a property file (all must hold) and the sizes of its vectors.

    ``networks`` is empty for VNN-LIB 1.0, whose one network has no name.
    """

    assertions: tuple[Formula, ...]
    n_inputs: int
    n_outputs: int
    networks: tuple[ExactNetwork, ...]

    @property
    def is_plain(self) -> bool:
        """Whether there is one network with one input and one value."""
        if len(self.networks) > 1:
            return False
        return all(len(net.inputs) == len(net.sizes) == 1 for net in self.networks)


def read_exact(text: str, as_float64: bool = False) -> ExactQuery:
    """Read VNN-LIB 1.0 or 2.0 without rounding anything.

    Args:
        text: the property.
        as_float64: numbers stand for the nearest float64 instead of for themselves.

    Raises:
        CertificateError: not linear, or a form this reading does not know.
    """
    number = (lambda token: Fraction(float(token))) if as_float64 else Fraction
    names: dict[str, Any] = {"": number}
    size = {"x": 0, "y": 0}
    assertions, networks = [], []
    for form in _forms(text):
        head = form[0]
        if head in ("declare-const", "declare-fun"):
            letter, index = form[1].lower().split("_")
            names[form[1]] = (letter, int(index), ())
            size[letter] = max(size[letter], int(index) + 1)
        elif head == "declare-network":
            networks.append(_network(form, names, size))
        elif head == "assert":
            assertions.append(_formula(form[1], names))
    return ExactQuery(tuple(assertions), size["x"], size["y"], tuple(networks))


def _network(form: Sequence[Any], names: dict[str, Any], size: dict[str, int]) -> ExactNetwork:
    """A declaration; its values are entered under their names and counted."""
    inputs, sizes, hidden, same_as = [], [], [], None
    for kind, name, *rest in form[2:]:
        if kind in ("equal-to", "isomorphic-to"):
            same_as = name if kind == "equal-to" else None
            continue
        if kind not in _LETTERS:
            raise CertificateError(f"{kind!r} in a declaration of a network is not known")
        letter, shape = _LETTERS[kind], tuple(map(int, re.findall(r"\d+", rest[1])))
        names[name] = (letter, size[letter], shape)
        size[letter] += _product(shape)
        if letter == "x":
            inputs.append(range(size["x"] - _product(shape), size["x"]))
        else:
            sizes.append(_product(shape))
        if kind == "declare-hidden":
            hidden.append(rest[2].strip('"'))
    return ExactNetwork(form[1], same_as, tuple(inputs), tuple(sizes), tuple(hidden))


def holds(text: str, x: Iterable[float], y: Iterable[float]) -> bool:
    """Whether inputs ``(n_inputs,)`` and outputs ``(n_outputs,)`` satisfy the text, exactly.

    Numbers in the text are read as float64, as whoever replays a counterexample does: files print
    float32 bounds with 17 digits, which lie beside the bound by less than float64 can tell.

    Raises:
        CertificateError: the lengths are not those of the text, or it cannot be read.
    """
    query = read_exact(text, as_float64=True)
    values = {("x", i): Fraction(float(v)) for i, v in enumerate(x)}
    n_inputs = len(values)
    values |= {("y", i): Fraction(float(v)) for i, v in enumerate(y)}
    if (n_inputs, len(values) - n_inputs) != (query.n_inputs, query.n_outputs):
        raise CertificateError(
            f"the property has {query.n_inputs} inputs and {query.n_outputs} outputs, "
            f"the point has {n_inputs} and {len(values) - n_inputs}"
        )
    return all(_holds(part, values) for part in query.assertions)


def exact_clauses(query: ExactQuery) -> list[list[StrictRow]]:
    """The query as a disjunction of conjunctions of rows ``<= 0`` (``< 0`` where strict).

    Raises:
        CertificateError: more than ``MAX_CLAUSES`` conjunctions.
    """
    return list(_clauses(("and", query.assertions)))


def _forms(text: str) -> Iterator[list[Any]]:
    stack: list[list[Any]] = [[]]
    for token in re.findall(r';[^\n]*|"[^"]*"|[()]|[^\s()\[;"]*\[[^\]]*\]|[^\s();"]+', text):
        if token[0] == ";":
            continue
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            if not stack:
                raise CertificateError("a ')' too many")
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1:
        raise CertificateError("a ')' is missing")
    yield from stack[0]


def _formula(form: Sequence[Any], names: Mapping[str, Any]) -> Formula:
    head, *rest = form
    if head in ("and", "or"):
        return head, tuple(_formula(part, names) for part in rest)
    left, right = (_linear(part, names) for part in rest)
    forward, backward = _minus(left, right), _minus(right, left)
    table = {
        "<=": ("<=", *forward),
        "<": ("<", *forward),
        ">=": ("<=", *backward),
        ">": ("<", *backward),
        "=": ("and", (("<=", *forward), ("<=", *backward))),
        "!=": ("or", (("<", *forward), ("<", *backward))),
    }
    if head not in table and head != "==":
        raise CertificateError(f"unknown operator {head!r}")
    return table["=" if head == "==" else head]


def _linear(form: Any, names: Mapping[str, Any]) -> Row:
    if isinstance(form, str):
        if form[0].isalpha():
            return {_variable(form, names): Fraction(1)}, Fraction(0)
        return {}, names[""](form)
    head, first, *rest = form[0], *(_linear(part, names) for part in form[1:])
    if head == "-" and not rest:
        return _minus(({}, Fraction(0)), first)
    for other in rest:
        if head == "-":
            first = _minus(first, other)
        elif head == "+":
            first = _minus(first, _minus(({}, Fraction(0)), other))
        elif head == "*" and not other[0]:
            first = _times(first, other[1])
        elif head == "*" and not first[0]:
            first = _times(other, first[1])
        elif head == "/" and not other[0] and other[1]:
            first = _times(first, 1 / other[1])
        else:
            raise CertificateError(f"({head} ...) is not linear")
    return first


def _variable(token: str, names: Mapping[str, Any]) -> Variable:
    name, _, place = token.partition("[")
    if name not in names:
        raise CertificateError(f"{token!r} is not declared")
    letter, offset, shape = names[name]
    for position, index in enumerate(map(int, re.findall(r"\d+", place))):
        offset += index * _product(shape[position + 1 :])
    return letter, offset


def _product(values: Iterable[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def _minus(a: Row, b: Row) -> Row:
    terms = {v: a[0].get(v, Fraction(0)) - b[0].get(v, Fraction(0)) for v in {**a[0], **b[0]}}
    return {v: c for v, c in terms.items() if c}, a[1] - b[1]


def _times(a: Row, factor: Fraction) -> Row:
    return {v: c * factor for v, c in a[0].items() if factor}, a[1] * factor


def _holds(formula: Formula, values: Mapping[Variable, Fraction]) -> bool:
    head = formula[0]
    if head == "and":
        return all(_holds(part, values) for part in formula[1])
    if head == "or":
        return any(_holds(part, values) for part in formula[1])
    total = sum((c * values[v] for v, c in formula[1].items()), formula[2])
    return total < 0 or (head == "<=" and total == 0)


def _clauses(formula: Formula) -> Iterable[list[StrictRow]]:
    head = formula[0]
    if head == "or":
        return itertools.chain.from_iterable(map(_clauses, formula[1]))
    if head != "and":
        return [[(formula[1], formula[2], head == "<")]]
    atoms = [
        row for part in formula[1] if part[0] in ("<=", "<") for row in next(iter(_clauses(part)))
    ]
    found = [atoms]
    for part in formula[1]:
        if part[0] in ("and", "or"):
            choices = list(_clauses(part))
            if len(found) * len(choices) > MAX_CLAUSES:
                raise CertificateError(f"more than {MAX_CLAUSES} clauses")
            found = [a + b for a in found for b in choices]
    return found
