"""From the certificate of a verifier to a proof file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.check import Derivation, digests, read_steps
from holdfast.certificates.clauses import Goal, goals
from holdfast.certificates.enclosure import Ranges
from holdfast.certificates.errors import CertificateError
from holdfast.certificates.exact import read_exact
from holdfast.certificates.proof import INPUT, Proof, digest, save_proof
from holdfast.certificates.several import Files, assigned
from holdfast.certificates.substitution import Substitution
from holdfast.certificates.trees import Branch, complete, flatten
from holdfast.graphs.graph import Graph
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.properties.networks import Joined, assign
from holdfast.properties.tokens import read_text
from holdfast.properties.vnnlib import parse_vnnlib, read_vnnlib
from holdfast.verifiers.problem import Certificate, Clause, Leaf, Property, Verdict

Array = NDArray[np.float64]


def build_proof(certificate: Certificate, graph: Graph, network: Files, prop: str | Path) -> Proof:
    """The proof of ``unsat`` that `holdfast.certificates.check` accepts.

    Args:
        certificate: the leaves of a verifier.
        graph: the graph that the certificate's node numbers mean.
        network: path of the ONNX file, or of the file of each declared network by its name.
        prop: path of the VNN-LIB file.

    Raises:
        CertificateError: the leaves do not cover a clause, or proofs do not cover the network.
    """
    text = read_text(prop)
    query, coupled = read_exact(text), parse_vnnlib(text).coupled
    substitution = None
    if coupled is not None:
        substitution = Substitution(coupled.coupling.base, coupled.coupling.shift)
        certificate = _over_goals(certificate, coupled.prop, goals(text, substitution))
    files = assigned(query, network)
    steps, wanted = read_steps(query, files, substitution), goals(text, substitution)
    relus = relu_numbers(graph)
    grouped: list[list[Leaf]] = [[] for _ in wanted]
    for leaf in certificate.leaves:
        grouped[leaf.clause].append(leaf)
    known: dict[bytes, Ranges] = {}
    trees = []
    range_slopes = {
        (relus[node], relus[activation]): np.asarray(slopes, dtype=np.float32)
        for node, by_activation in certificate.bound_slopes.items()
        for activation, slopes in by_activation.items()
    }
    for number, (goal, leaves) in enumerate(zip(wanted, grouped, strict=True)):
        if (goal.lower > goal.upper).any():  # nothing is left of the clause
            trees.append(flatten(Branch((), np.ones(len(goal.constants)))))
            continue
        if not leaves:
            raise CertificateError(f"the certificate has no leaf for clause {number}")
        root = Branch((), _weights(goal, leaves))
        grow(root, goal.lower, goal.upper, leaves, relus)
        complete(root, Derivation(steps, goal, range_slopes, known))
        trees.append(flatten(root, range_slopes))
    return Proof(digests(files), digest(text.encode()), tuple(trees), substitution)


def _over_goals(certificate: Certificate, prop: Property, found: Sequence[Goal]) -> Certificate:
    """The leaves with a weight for every row of the text: the verifier leaves implied ones out."""
    places = [_places(clause, goal) for clause, goal in zip(prop.clauses, found, strict=False)]
    leaves = []
    for leaf in certificate.leaves:
        weights = np.zeros(len(found[leaf.clause].constants))
        np.add.at(weights, places[leaf.clause], leaf.weights)
        leaves.append(replace(leaf, weights=weights))
    return replace(certificate, leaves=tuple(leaves))


def _places(clause: Clause, goal: Goal) -> list[int]:
    of_inputs = np.zeros((len(clause.d), len(clause.lower))) if clause.D is None else clause.D
    rows = np.hstack([goal.of_outputs, goal.of_inputs, goal.constants[:, None]])
    mine = np.hstack([clause.C, of_inputs, clause.d[:, None]])
    found = [np.flatnonzero((rows == row).all(1)) for row in mine]
    if not all(len(places) for places in found):
        raise CertificateError("a row of the verifier is none of the text's")
    return [int(places[0]) for places in found]


def write_proof(verdict: Verdict, network: Files, prop: str | Path, path: str | Path) -> Proof:
    """Write the proof of a verdict that was found with ``certificate=True``.

    Raises:
        CertificateError: the verdict has no certificate, or proofs do not cover the network.
    """
    if verdict.certificate is None:
        raise CertificateError(
            f"a verdict of {verdict.status!r} has no certificate: only 'unsat' found with "
            "certificate=True has"
        )
    query = read_vnnlib(prop)
    files = assign(query, network)
    if query.is_plain:
        graph = read_onnx(next(iter(files.values())), fold=False)
    else:
        graph = Joined.of(query, files).graph
    proof = build_proof(verdict.certificate, graph, network, prop)
    save_proof(proof, path)
    return proof


def relu_numbers(graph: Graph) -> dict[int, int]:
    """Number of the ReLU that a node is, or that reads it first, by the node's index."""
    relus = [node for node in graph.nodes if type(node.op).__name__ == "ReLU"]
    own = {node.index: number for number, node in enumerate(relus)}
    read = {node.inputs[0]: number for number, node in reversed(list(enumerate(relus)))}
    return read | own


def _weights(goal: Goal, leaves: Sequence[Leaf]) -> Array:
    if not len(goal.constants):
        raise CertificateError("a clause without rows is violated by every input of its box")
    return np.asarray(leaves[0].weights, dtype=np.float64)


def grow(
    root: Branch, lower: Array, upper: Array, leaves: Sequence[Leaf], relus: Mapping[int, int]
) -> None:
    """Divide ``root`` until every part holds one of the leaves.

    Raises:
        CertificateError: the leaves do not come from successive cuts.
    """
    pending = [(root, lower, upper, list(leaves), 0)]
    while pending:
        node, lower, upper, mine, depth = pending.pop()
        if len(mine) == 1 and len(mine[0].splits) == depth and _fills(mine[0], lower, upper):
            _carry(node, mine[0], relus)
            continue
        splits = {
            (s.node, s.neuron, s.point) for leaf in mine for s in leaf.splits[depth : depth + 1]
        }
        if len(splits) == 1 and all(len(leaf.splits) > depth for leaf in mine):
            ((at, neuron, point),) = splits
            sides = [[x for x in mine if x.splits[depth].above == side] for side in (False, True)]
            parts = node.divide(relus[at], neuron, point)
            pending += [(part, lower, upper, side, depth + 1)
                        for part, side in zip(parts, sides, strict=True)]  # fmt: skip
        else:
            index, point, sides = _input_cut(mine, lower, upper)
            parts = node.divide(INPUT, index, point)
            for part, side in zip(parts, sides, strict=True):
                low, high = lower.copy(), upper.copy()
                (low if part is parts[1] else high)[index] = point
                pending.append((part, low, high, side, depth))
        if not all(sides):
            raise CertificateError("the leaves of the certificate do not cover their clause")


def _fills(leaf: Leaf, lower: Array, upper: Array) -> bool:
    return bool((leaf.lower <= lower).all() and (leaf.upper >= upper).all())


def _carry(node: Branch, leaf: Leaf, relus: Mapping[int, int]) -> None:
    node.weights = np.asarray(leaf.weights, dtype=np.float64)
    node.multipliers = tuple(float(m) for m in leaf.multipliers)
    node.slopes = {
        relus[k]: np.asarray(v, dtype=np.float32).ravel() for k, v in leaf.slopes.items()
    }


def _input_cut(
    leaves: Sequence[Leaf], lower: Array, upper: Array
) -> tuple[int, float, list[list[Leaf]]]:
    """An input and a point where no leaf is cut and both sides hold one."""
    lows, highs = np.stack([x.lower for x in leaves]), np.stack([x.upper for x in leaves])
    possible = np.flatnonzero((lows.max(axis=0) > lower) & (highs.min(axis=0) < upper)).tolist()
    halves = [(index, 0.5 * (lower[index] + upper[index])) for index in possible]
    others = ((i, point) for i in possible for point in np.unique(lows[:, i]) if point > lower[i])
    for index, point in itertools.chain(halves, others):
        is_below, is_above = highs[:, index] <= point, lows[:, index] >= point
        if (is_below ^ is_above).all() and is_below.any() and is_above.any():
            sides = [[x for x, b in zip(leaves, is_below, strict=True) if b == keep]
                     for keep in (True, False)]  # fmt: skip
            return index, float(point), sides
    raise CertificateError("the leaves of the certificate are not the parts of successive cuts")
