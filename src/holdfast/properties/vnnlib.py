"""Read properties in the format of the verification competition: VNN-LIB 1.0 and 2.0.

A file states the violation: ``sat`` means that some input satisfies all of its assertions. Version
1.0 declares scalars ``X_i`` and ``Y_i``, version 2.0 networks with shaped
inputs and outputs. Both may nest ``and`` and ``or`` over linear comparisons of inputs and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from holdfast.properties.coupling import Coupling, couple
from holdfast.properties.declarations import Declarations
from holdfast.properties.errors import PropertyError
from holdfast.properties.formula import (
    And,
    Assembler,
    Atom,
    Bound,
    Formula,
    Or,
    Row,
    clauses,
    n_clauses,
    outward,
)
from holdfast.properties.record import Coupled, Network, Query, Tensor
from holdfast.properties.tokens import Tokens, read_text
from holdfast.verifiers.problem import Clause, Property

MAX_CLAUSES = 200_000
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$")
SCALAR = re.compile(r"([XY])_(\d+)$")
ELEMENT = re.compile(r"([A-Za-z]\w*)\[([\d,\s]*)\]$")
NAMED = re.compile(r"[A-Za-z]")
COMPARISONS = {"<=", ">=", "<", ">", "=", "==", "!="}

Linear = tuple[dict[int, Fraction], Fraction]


def read_vnnlib(path: str | Path) -> Query:
    """Read a VNN-LIB file (plain or gzip).

    Raises:
        PropertyError: unreadable, malformed or not linear; says line and column.
    """
    return parse_vnnlib(read_text(path))


def parse_vnnlib(text: str) -> Query:
    """Read VNN-LIB 1.0 or 2.0 from its text; see `read_vnnlib`."""
    try:
        return _Parser(Tokens(text)).query()
    except RecursionError:
        raise PropertyError("the formula is nested too deeply: flatten it") from None


@dataclass(slots=True)
class _Parser:
    """Recursive descent over the tokens; variables are numbered as in `Row`."""

    tokens: Tokens
    version: str = "1.0"
    variables: dict[str, int] = field(default_factory=dict)
    bounds: list[Bound] = field(default_factory=list)
    formulas: list[Formula] = field(default_factory=list)
    declared: Declarations = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is declared yet."""
        self.declared = Declarations(self.tokens)

    def query(self) -> Query:
        """The whole text."""
        while self.tokens.peek():
            self.command()
        self.check_declared()
        n_inputs, n_outputs = (self.declared.used[is_input] for is_input in (True, False))
        formula = And(tuple(self.formulas))
        if (size := n_clauses(formula)) > MAX_CLAUSES:
            raise PropertyError(
                f"the assertions multiply out to {size} clauses, at most {MAX_CLAUSES} are "
                "supported: split the property into several files"
            )
        conjunctions = clauses(formula)
        assembler = Assembler.unbounded(n_inputs, n_outputs)
        found = assembler.clauses(self.bounds, conjunctions)
        coupling = self.coupling(n_inputs)
        freed = found
        if coupling is not None:
            freed = _over_free(coupling, self.bounds, conjunctions, n_outputs)
        kept = [pair for pair in zip(found, freed, strict=True) if None not in pair]
        prop, over_free = (Property(tuple(c for c in side if c)) for side in _columns(kept))
        return Query(
            prop,
            n_inputs,
            n_outputs,
            tuple(self.declared.networks),
            self.version,
            len(found) - len(kept),
            assembler.is_exact,
            self.tokens.text,
            None if coupling is None else Coupled(coupling, over_free),
        )

    def coupling(self, n_inputs: int) -> Coupling | None:
        """How inputs of several networks hang together in all clauses, if they do."""
        if len(self.declared.networks) < 2:
            return None
        rows = [formula for formula in self.formulas if isinstance(formula, Row)]
        coupling = couple(rows, self.bounds, n_inputs)
        return None if coupling.is_trivial else coupling

    def check_declared(self) -> None:
        """Inputs and outputs must exist and, in version 1.0, be numbered without gaps."""
        if self.version == "1.0":
            for letter, sign in (("X", 1), ("Y", -1)):
                numbers = sorted(
                    v if v >= 0 else -1 - v
                    for v in self.variables.values()
                    if (v >= 0) == (sign > 0)
                )
                missing = next((i for i, n in enumerate(numbers) if i != n), len(numbers))
                if missing < len(numbers) or not numbers:
                    raise PropertyError(
                        f"{letter}_{missing} is not declared: declare every "
                        f"{letter}_0, {letter}_1, ... of the network"
                    )
            n_inputs = sum(v >= 0 for v in self.variables.values())
            n_outputs = len(self.variables) - n_inputs
            self.declared.networks = [
                Network("", (Tensor("X", (n_inputs,), 0),), (Tensor("Y", (n_outputs,), 0),))
            ]
            self.declared.used = {True: n_inputs, False: n_outputs}
        elif not self.declared.networks:
            raise PropertyError("no network is declared: add (declare-network ...)")

    def command(self) -> None:
        """One parenthesised command."""
        tokens = self.tokens
        tokens.expect("(")
        match tokens.next():
            case "assert":
                self.assertion()
            case "declare-const":
                self.scalar()
            case "declare-fun":
                name_at = tokens.at
                tokens.at += 1
                tokens.expect("(")
                tokens.expect(")")
                end, tokens.at = tokens.at, name_at
                self.scalar(end)
            case "vnnlib-version":
                self.set_version()
            case "declare-network":
                self.version = "2.0"
                self.declared.network()
            case "set-logic" | "set-info" | "set-option" | "check-sat" | "get-model" | "exit":
                while tokens.peek() not in {")", ""}:
                    tokens.next()
            case other:
                tokens.fail(
                    f"unknown command {other!r}; allowed: assert, declare-const, "
                    "declare-fun, declare-network, vnnlib-version",
                    tokens.at - 1,
                )
        tokens.expect(")")

    def set_version(self) -> None:
        """``(vnnlib-version <2.0>)``."""
        given = self.tokens.next().strip("<>")
        if given.split(".")[0] not in {"1", "2"}:
            self.tokens.fail(
                f"VNN-LIB version {given} is not supported, only 1.0 and 2.0", self.tokens.at - 1
            )
        self.version = "2.0" if given.startswith("2") else "1.0"

    def scalar(self, type_at: int | None = None) -> None:
        """A declaration of version 1.0: ``X_0 Real``."""
        tokens = self.tokens
        name = tokens.next()
        if not (found := SCALAR.match(name)):
            tokens.fail(
                f"{name!r} is neither an input X_0, X_1, ... nor an output Y_0, Y_1, ...",
                tokens.at - 1,
            )
        if name in self.variables:
            tokens.fail(f"{name!r} is declared twice", tokens.at - 1)
        number = int(found[2])
        self.variables[name] = number if found[1] == "X" else -1 - number
        tokens.at = type_at or tokens.at
        if (kind := tokens.next()) != "Real":
            tokens.fail(f"type {kind!r} of {name} is not supported, only Real", tokens.at - 1)

    def assertion(self) -> None:
        """The formula of an assert; bounds of inputs are put aside, as most assertions are such."""
        stack = [self.formula()]
        while stack:
            match stack.pop():
                case Bound() as bound:
                    self.bounds.append(bound)
                case And(parts):
                    stack.extend(reversed(parts))
                case other:
                    self.formulas.append(other)

    def formula(self) -> Formula:
        """A comparison, or and/or of formulas."""
        tokens = self.tokens
        tokens.expect("(")
        operator = tokens.next()
        if operator in COMPARISONS:
            found = self.comparison(operator)
        elif operator in {"and", "or"}:
            parts = []
            while tokens.peek() == "(":
                parts.append(self.formula())
            if not parts:
                tokens.fail(f"({operator} ...) needs at least one part")
            found = And(tuple(parts)) if operator == "and" else Or(tuple(parts))
        else:
            tokens.fail(
                f"unknown operator {operator!r} in a formula; allowed: and, or, "
                f"{', '.join(sorted(COMPARISONS))}",
                tokens.at - 1,
            )
        tokens.expect(")")
        return found

    def comparison(self, operator: str) -> Formula:
        """Two linear expressions; ``X_i <= number``, most of most files, goes the short way."""
        tokens = self.tokens
        left, right, end = (*tokens.items[tokens.at : tokens.at + 3], "", "")[:3]
        if end == ")" and operator in {"<=", ">="} and NUMBER.match(right) and NAMED.match(left):
            tokens.at += 1
            if (variable := self.variable(left)) >= 0:
                tokens.at += 1
                upper = operator == "<="
                return Bound(variable, upper, outward(Decimal(right), upper))
            tokens.at -= 1
        a, b = self.linear(), self.linear()
        terms = {v: a[0].get(v, Fraction(0)) - b[0].get(v, Fraction(0)) for v in a[0] | b[0]}
        terms = {v: c for v, c in terms.items() if c}
        below = Row(terms, a[1] - b[1], operator in {"<", ">", "!="})
        above = Row({v: -c for v, c in terms.items()}, b[1] - a[1], below.strict)
        match operator:
            case "<=" | "<":
                return below
            case ">=" | ">":
                return above
            case "!=":
                return Or((below, above))
            case _:
                return And((below, above))

    def linear(self) -> Linear:
        """A linear expression: coefficients by variable, and a constant."""
        tokens = self.tokens
        token = tokens.next()
        if token == "(":
            return self.arithmetic()
        if NUMBER.match(token):
            return {}, Fraction(token)
        return {self.variable(token): Fraction(1)}, Fraction(0)

    def arithmetic(self) -> Linear:
        """``(+ a b ...)``, ``(- a ...)``, ``(* a b ...)``, ``(/ a b)`` after its ``(``."""
        tokens = self.tokens
        start, operator = tokens.at, tokens.next()
        if operator not in {"+", "-", "*", "/"}:
            tokens.fail(f"unknown operator {operator!r} in an expression; allowed: + - * /", start)
        parts = []
        while tokens.peek() not in {")", ""}:
            parts.append(self.linear())
        tokens.expect(")")
        if not parts or (operator == "/" and len(parts) != 2):
            tokens.fail(f"({operator} ...) has {len(parts)} operands", start)
        if operator == "-" and len(parts) == 1:
            return _scale(parts[0], Fraction(-1))
        result = parts[0]
        for part in parts[1:]:
            match operator:
                case "+":
                    result = _add(result, part)
                case "-":
                    result = _add(result, _scale(part, Fraction(-1)))
                case "*" if not (result[0] and part[0]):
                    result = _scale(result, part[1]) if result[0] else _scale(part, result[1])
                case "/" if not part[0] and part[1]:
                    result = _scale(result, 1 / part[1])
                case _:
                    tokens.fail(
                        "only linear constraints are supported: a product of two variables, "
                        "or a division by a variable or by zero",
                        start,
                    )
        return result

    def variable(self, token: str) -> int:
        """Number of a variable, ``X_3`` or ``X[0,3]``; elements are entered when first met."""
        if (known := self.variables.get(token)) is not None:
            return known
        tokens, at = self.tokens, self.tokens.at - 1
        found = ELEMENT.match(token)
        name = found[1] if found else token
        if name not in self.declared.tensors:
            tokens.fail(f"{token!r} is not declared", at)
        tensor, is_input = self.declared.tensors[name]
        place = [int(i) for i in found[2].split(",") if i.strip()] if found else []
        if len(place) != len(tensor.shape):
            tokens.fail(
                f"{token} has {len(place)} indices, {name} has {len(tensor.shape)} dimensions", at
            )
        flat = 0
        for index, dim in zip(place, tensor.shape, strict=True):
            if index >= dim:
                tokens.fail(f"index {index} of {token} is outside of dimension {dim}", at)
            flat = flat * dim + index
        number = tensor.offset + flat
        self.variables[token] = number if is_input else -1 - number
        return self.variables[token]


def _over_free(
    coupling: Coupling, bounds: Sequence[Bound], conjunctions: Sequence[Sequence[Atom]], m: int
) -> list[Clause | None]:
    """The clauses over the free inputs of a coupling; None for contradictory ones."""
    assembler = Assembler.unbounded(len(coupling.lower), m)
    shifted = [bound for bound in bounds if coupling.shift[bound.index] >= 0]
    return assembler.clauses(
        list(coupling.bounds()),
        [coupling.rewritten([*shifted, *atoms]) for atoms in conjunctions],
    )


def _columns(pairs: Sequence[tuple[Clause | None, Clause | None]]) -> list[list[Clause | None]]:
    return [[pair[side] for pair in pairs] for side in (0, 1)]


def _scale(a: Linear, factor: Fraction) -> Linear:
    return {v: c * factor for v, c in a[0].items() if factor}, a[1] * factor


def _add(a: Linear, b: Linear) -> Linear:
    terms = dict(a[0])
    for variable, coefficient in b[0].items():
        terms[variable] = terms.get(variable, Fraction(0)) + coefficient
    return {v: c for v, c in terms.items() if c}, a[1] + b[1]
