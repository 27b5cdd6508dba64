"""What a property file says, ready for a verifier and still checkable against its text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from holdfast.properties.coupling import Coupling
from holdfast.properties.errors import PropertyError
from holdfast.verifiers.problem import Property


@dataclass(frozen=True, slots=True)
class Tensor:
    """A declared input or output: its place in the flat vector, its name in the ONNX file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    onnx_name: str | None = None
    element_type: str = "Real"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Relation:
    """What a network says of an earlier one: the same file, or the same structure."""

    kind: Literal["equal-to", "isomorphic-to"]
    to: str


@dataclass(frozen=True, slots=True)
class Network:
    """A declared network; ``hidden`` are values inside, named by the file."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    relation: Relation | None = None
    hidden: tuple[Tensor, ...] = ()

    @property
    def same_as(self) -> str | None:
        """The earlier network whose file this one is, if any."""
        return self.relation.to if self.relation and self.relation.kind == "equal-to" else None


@dataclass(frozen=True, slots=True, eq=False)
class Coupled:
    """A property of several networks over fewer inputs: those that the others follow from.

    Attributes:
        coupling: how.
        prop: clauses over the free inputs, one for each clause of the query. Together with the
            coupling each describes the clause's set, or a larger one.
    """

    coupling: Coupling
    prop: Property


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A property read from a file: is there an input (and its outputs) that violates it?

    Decimals that no float64 holds are rounded so that the set of ``prop`` contains the set of
    the text: an empty set there proves the text's set empty. A counterexample is checked against
    the text itself, see `holdfast.certificates.exact.holds`.

    Attributes:
        prop: the ways to violate it; contradictory ones are already left out.
        n_inputs: length of the flat input vector: all declared inputs, in order.
        n_outputs: length of the flat output vector.
        networks: the declared networks; one without a name for VNN-LIB 1.0.
        version: format of the text, ``"1.0"`` or ``"2.0"``.
        n_contradictory: how many clauses were left out since nothing can satisfy them.
        is_exact: False when a coefficient of a row had to be rounded to float64.
        text: the source.
        coupled: the same over fewer inputs, where inputs of several networks hang together.
    """

    prop: Property
    n_inputs: int
    n_outputs: int
    networks: tuple[Network, ...]
    version: str
    n_contradictory: int
    is_exact: bool
    text: str
    coupled: Coupled | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is one network with one input and one output, and nothing inside it."""
        inputs, outputs = (
            sum(len(values) for values in group)
            for group in (
                [network.inputs for network in self.networks],
                [(*network.hidden, *network.outputs) for network in self.networks],
            )
        )
        return (len(self.networks), inputs, outputs) == (1, 1, 1)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should be told beside the verdict."""
        found = []
        if self.n_contradictory:
            total = self.n_contradictory + len(self.prop.clauses)
            end = "" if self.prop.clauses else ": nothing can violate this property"
            found.append(f"{self.n_contradictory} of {total} clauses contradict themselves{end}")
        if not self.is_exact:
            found.append("coefficients without an exact float64 were rounded to the nearest")
        return tuple(found)

    def check_counts(self, n_inputs: int, n_outputs: int) -> None:
        """Refuse a network whose inputs or outputs are not those of the property.

        Raises:
            PropertyError: the counts differ.
        """
        for what, own, theirs in (
            ("inputs", self.n_inputs, n_inputs),
            ("outputs", self.n_outputs, n_outputs),
        ):
            if own != theirs:
                raise PropertyError(
                    f"the property declares {own} {what}, the network has {theirs}: "
                    "check that the two files belong together"
                )

    def check_bounded(self) -> None:
        """Refuse inputs without bounds, which cannot be searched.

        Raises:
            PropertyError: an input lacks a finite lower or upper bound.
        """
        prop = self.prop if self.coupled is None else self.coupled.prop
        for number, clause in enumerate(prop.clauses):
            free = np.flatnonzero(~(np.isfinite(clause.lower) & np.isfinite(clause.upper)))
            if len(free):
                raise PropertyError(
                    f"input {self.input_name(int(free[0]))} lies in [{clause.lower[free[0]]}, "
                    f"{clause.upper[free[0]]}] in clause {number}: assert a finite lower and "
                    "upper bound for every input"
                )

    def input_name(self, index: int) -> str:
        """How the text calls an element of the inputs, or of the free inputs where there are."""
        if self.coupled is not None:
            index = int(np.flatnonzero(self.coupled.coupling.base == index)[0])
        if self.version == "1.0":
            return f"X_{index}"
        tensors = [tensor for network in self.networks for tensor in network.inputs]
        tensor = next(t for t in tensors if t.offset <= index < t.offset + t.size)
        place = np.unravel_index(index - tensor.offset, tensor.shape) if tensor.shape else ()
        return f"{tensor.name}[{','.join(map(str, place))}]" if tensor.shape else tensor.name
