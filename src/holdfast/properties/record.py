"""What a property file says, ready for a verifier and still checkable against its text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
class Network:
    """A declared network; ``same_as`` names an earlier one of the same weights (or interface)."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    same_as: str | None = None


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
    """

    prop: Property
    n_inputs: int
    n_outputs: int
    networks: tuple[Network, ...]
    version: str
    n_contradictory: int
    is_exact: bool
    text: str

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

    def check_single(self) -> None:
        """Refuse a property of several networks, inputs or outputs, where one is asked for.

        Raises:
            PropertyError: more than one network, input or output is declared.
        """
        inputs = sum(len(network.inputs) for network in self.networks)
        outputs = sum(len(network.outputs) for network in self.networks)
        if (len(self.networks), inputs, outputs) != (1, 1, 1):
            raise PropertyError(
                f"the property declares {len(self.networks)} networks with {inputs} inputs and "
                f"{outputs} outputs; one network with one input and one output can be decided: "
                "merge the networks into one ONNX file and declare that"
            )

    def check_bounded(self) -> None:
        """Refuse inputs without bounds, which cannot be searched.

        Raises:
            PropertyError: an input lacks a finite lower or upper bound.
        """
        for number, clause in enumerate(self.prop.clauses):
            free = np.flatnonzero(~(np.isfinite(clause.lower) & np.isfinite(clause.upper)))
            if len(free):
                raise PropertyError(
                    f"input {free[0]} lies in [{clause.lower[free[0]]}, {clause.upper[free[0]]}] "
                    f"in clause {number}: assert a finite lower and upper bound for every input"
                )
