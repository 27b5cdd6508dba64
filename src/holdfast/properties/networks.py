"""Queries about several networks: whose file is which, one joined graph, replay of each alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.certificates.exact import holds
from holdfast.graphs.graph import Graph
from holdfast.graphs.joined import Part, Slot, join
from holdfast.graphs.onnx_reader import free_inputs, load_model
from holdfast.properties.coupling import Coupling
from holdfast.properties.errors import PropertyError
from holdfast.properties.record import Network, Query
from holdfast.properties.structure import Structure
from holdfast.verifiers.problem import Clause, Counterexample, FloatArray, Property, Values
from holdfast.verifiers.replay import inside, values_runtime

if TYPE_CHECKING:
    from onnx import ModelProto

_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Names of the element types that ONNX numbers."""
_SYNONYMS = {"float": "float32", "double": "float64", "half": "float16"}

Run = Callable[[Sequence[NDArray[np.float32]]], list[Values]]
File = str | os.PathLike[str]
Files = File | Mapping[str, File]
"""One file, or a file for each declared network by its name."""


def assign(query: Query, files: Files) -> dict[str, Path]:
    """The file of every declared network.

    A network that is ``equal-to`` another has the other's file and needs none of its own.

    Raises:
        PropertyError: a network has no file, a file no network, or equal networks differ.
    """
    own = [network.name for network in query.networks if network.same_as is None]
    given = _by_name(own, files)
    names = [network.name for network in query.networks]
    if unknown := sorted(set(given) - set(names)):
        declared = ", ".join(names) if names != [""] else "one without a name (VNN-LIB 1.0)"
        raise PropertyError(f"no network {unknown[0]!r} is declared; declared: {declared}")
    if missing := [name for name in own if name not in given]:
        raise PropertyError(f"network {missing[0]} has no file: add --network {missing[0]}=FILE")
    found = {name: Path(given[name]) for name in own}
    for network in query.networks:
        if network.same_as is not None:
            found[network.name] = found[network.same_as]
            _check_equal(network, given.get(network.name), found[network.same_as])
    return found


def _by_name(own: Sequence[str], files: Files) -> Mapping[str, File]:
    """The files by name; a lone one is that of the only network with a file of its own."""
    if isinstance(files, Mapping):
        return files
    if len(own) != 1:
        raise PropertyError(
            f"the property declares the networks {', '.join(own)}: give a file for each, "
            + " ".join(f"--network {name}={name}.onnx" for name in own)
        )
    return {own[0]: files}


def _check_equal(network: Network, given: File | None, wanted: Path) -> None:
    if given is not None and not _same(Path(given), wanted):
        raise PropertyError(
            f"{network.name} is equal-to {network.same_as}, but {given} is not the file {wanted}: "
            "leave it out, or declare no relation"
        )


def _same(a: Path, b: Path) -> bool:
    try:
        return a == b or _digest(a) == _digest(b)
    except OSError as error:
        raise PropertyError(f"cannot read the network {str(error.filename)!r}: {error}") from error


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A query as a verifier takes it, and the way back to the networks.

    Attributes:
        query: what is asked.
        coupling: how declared inputs follow from the graph's.
        prop: the clauses over the graph's inputs and outputs.
        graph: all networks in one.
        runs: onnxruntime, for every network in order.
    """

    query: Query
    coupling: Coupling
    prop: Property
    graph: Graph
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, query: Query, files: Mapping[str, Path]) -> Joined:
        """Reads the networks.

        Raises:
            GraphError: a network cannot be read, or is not as it is declared.
            PropertyError: networks declared to be isomorphic have other structures.
            UnsupportedOperatorError: an operator has no bounds here.
        """
        if query.coupled is None:
            free = np.arange(query.n_inputs)
            coupling = Coupling(free, np.full_like(free, -1), (), ())
            prop, size = query.prop, query.n_inputs
        else:
            coupling, prop = query.coupled.coupling, query.coupled.prop
            size = len(coupling.lower)
        parts = [_part(network, files[network.name], coupling) for network in query.networks]
        _check_structures(query.networks, parts)
        runs = (values_runtime(files[net.name], _hidden(net)) for net in query.networks)
        return cls(query, coupling, prop, join(parts, size), tuple(runs))

    def confirm(self, clause: int, z: FloatArray) -> Counterexample | None:
        """The counterexample near ``z (q,)``, or None where the networks show no violation."""
        x, rounded = self.placed(clause, z)
        y = self.outputs(x)
        exact_x, exact_y = x.astype(np.float64), y.astype(np.float64)
        if not self.query.prop.clauses[clause].is_violated(exact_x, exact_y):
            return None
        if not rounded and not holds(self.query.text, exact_x, exact_y):
            return None
        return Counterexample(x, y, clause, rounded)

    def placed(self, clause: int, z: FloatArray) -> tuple[NDArray[np.float32], int]:
        """Declared inputs ``(p,)`` near ``z`` in a clause, and how many it has no float32 for."""
        own, free = self.query.prop.clauses[clause], self.prop.clauses[clause]
        base, shift = self.coupling.base, self.coupling.shift
        point, rounded = inside(z, free.lower, free.upper)
        x = point[base]
        moved = np.flatnonzero(shift >= 0)
        if len(moved):
            start = x[moved].astype(np.float64)
            low = np.maximum(own.lower[moved], start + free.lower[shift[moved]])
            high = np.minimum(own.upper[moved], start + free.upper[shift[moved]])
            x[moved], missed = inside(start + z[shift[moved]], low, high)
            return x, _rounded(free, np.unique(base)) + missed
        return x, rounded

    def outputs(self, x: NDArray[np.float32]) -> Values:
        """What onnxruntime gives for declared inputs ``(p,)``, network by network: ``(m,)``."""
        found = []
        for network, run in zip(self.query.networks, self.runs, strict=True):
            found += run([x[t.offset : t.offset + t.size].reshape(t.shape) for t in network.inputs])
        return np.concatenate(found)


def _rounded(clause: Clause, places: NDArray[np.int64]) -> int:
    lower, upper = clause.lower[places], clause.upper[places]
    return inside(lower, lower, upper)[1]


def _part(network: Network, file: Path, coupling: Coupling) -> Part:
    slots = []
    for tensor in network.inputs:
        places = slice(tensor.offset, tensor.offset + tensor.size)
        base, shift = (torch.from_numpy(v[places]) for v in (coupling.base, coupling.shift))
        slots.append(Slot(tensor.shape, base, shift))
    model = load_model(file)
    _check_types(network, file, model)
    sizes = tuple(tensor.size for tensor in (*network.hidden, *network.outputs))
    return Part(network.name, model, tuple(slots), sizes, _hidden(network))


def _check_structures(networks: Sequence[Network], parts: Sequence[Part]) -> None:
    """Networks that are ``isomorphic-to`` another have its structure.

    Raises:
        PropertyError: they have not.
    """
    graphs = {network.name: p.model.graph for network, p in zip(networks, parts, strict=True)}
    for network in networks:
        if network.relation is None or network.relation.kind != "isomorphic-to":
            continue
        to = network.relation.to
        first, second = (Structure.of(graphs[name]) for name in (to, network.name))
        if found := first.difference(second):
            raise PropertyError(
                f"{network.name} is isomorphic-to {to}, but {found}: give networks of the same "
                "structure, or declare no relation"
            )


def _check_types(network: Network, file: Path, model: ModelProto) -> None:
    """Inputs and outputs have the declared element types, unless those are Real.

    Raises:
        PropertyError: they have not, or inputs are neither float32 nor float64.
    """
    pairs = [
        *zip(network.inputs, free_inputs(model.graph), strict=False),
        *zip(network.outputs, model.graph.output, strict=False),
    ]
    for tensor, info in pairs:
        found = _TYPES.get(info.type.tensor_type.elem_type, "another type")
        declared = tensor.element_type.lower()
        wanted = (_SYNONYMS.get(declared, declared),) if declared != "real" else ()
        if tensor in network.inputs:
            wanted = wanted or ("float32", "float64")
        if wanted and found not in wanted:
            raise PropertyError(
                f"{tensor.name} is declared as {tensor.element_type}, {info.name!r} of {file} is "
                f"{found}: supported are inputs of float32 and float64, declared as such or as Real"
            )


def _hidden(network: Network) -> tuple[str, ...]:
    return tuple(tensor.onnx_name or "" for tensor in network.hidden)
