"""Check a proof against the network and the property, trusting nothing of whoever wrote it.

For every clause of the text the checker walks the tree of cases. That the cases cover the clause
holds by construction, as every cut keeps both sides. For each leaf it derives ranges of all values
and a lower bound of the weighted rows, with its own reading of the files and with every rounding
error paid for (`holdfast.certificates.enclosure`). A leaf is excluded when that bound is positive:
rows that are all at most zero have no positive combination with weights of at least zero.
"""

from __future__ import annotations

import gzip
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.clauses import Goal, goals
from holdfast.certificates.enclosure import (
    UNIT,
    LinearBound,
    Lines,
    Ranges,
    gamma,
    propagate,
    relu_lines,
    start,
)
from holdfast.certificates.errors import CertificateError
from holdfast.certificates.exact import ExactQuery, read_exact
from holdfast.certificates.network import read_network
from holdfast.certificates.proof import INPUT, LEAF, Proof, Tree, digest, load_proof
from holdfast.certificates.several import Files, assigned, joined_steps
from holdfast.certificates.steps import Step
from holdfast.certificates.substitution import Substitution

Array = NDArray[np.float64]
Cut = tuple[int, int, float, bool]
BATCH = 64


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether a proof was accepted, and why not.

    Attributes:
        accepted: True: no input violates the property, in real arithmetic with the file's weights.
        reason: what is wrong, in plain words; empty when accepted.
        n_leaves: cases that were derived again.
        smallest: the least of their proven bounds.
        seconds: wall-clock time.
    """

    accepted: bool
    reason: str
    n_leaves: int
    smallest: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Case:
    """A leaf: its number and the cuts on the way to it (layer, index, point, above)."""

    number: int
    cuts: tuple[Cut, ...]


def check(proof: str | Path | Proof, network: Files, prop: str | Path) -> CheckResult:
    """Whether ``proof`` shows that no input of ``network`` violates ``prop``.

    Args:
        proof: a proof, or the path of its file.
        network: path of the ONNX file, or of the file of each declared network by its name.
        prop: path of the VNN-LIB file, plain or gzip.

    Returns:
        The result; a proof, network or property that cannot be read is a refusal with its reason.
    """
    began = time.perf_counter()
    done: list[float] = []
    try:
        _check(proof if isinstance(proof, Proof) else load_proof(proof), network, prop, done)
        reason = ""
    except CertificateError as error:
        reason = str(error)
    smallest = min(done, default=float("inf"))
    return CheckResult(not reason, reason, len(done), smallest, time.perf_counter() - began)


def _check(proof: Proof, network: Files, prop: str | Path, done: list[float]) -> None:
    text = _read(prop)
    query = read_exact(text.decode())
    files = assigned(query, network)
    for what, found, wanted in (
        ("network", digests(files), proof.network_sha256),
        ("property", digest(text), proof.property_sha256),
    ):
        if found != wanted:
            raise CertificateError(f"the proof was made for another {what}")
    steps = read_steps(query, files, proof.substitution)
    wanted_goals = goals(text.decode(), proof.substitution)
    if len(wanted_goals) != len(proof.trees):
        raise CertificateError(
            f"the property has {len(wanted_goals)} clauses to exclude, "
            f"the proof covers {len(proof.trees)}"
        )
    known: dict[bytes, Ranges] = {}
    for number, (goal, tree) in enumerate(zip(wanted_goals, proof.trees, strict=True)):
        if (goal.of_inputs.shape[1], goal.of_outputs.shape[1]) != (steps[0].size, steps[-1].size):
            raise CertificateError("inputs or outputs of property and network differ in number")
        if not np.isfinite([goal.lower, goal.upper]).all():
            raise CertificateError("an input of the property has no bounds")
        _Clause(steps, goal, tree, number, known).exclude(done)


def digests(files: Mapping[str, Path]) -> str:
    """SHA-256 of every file, in order."""
    return "+".join(digest(_read(path)) for path in files.values())


def read_steps(
    query: ExactQuery, files: Mapping[str, Path], substitution: Substitution | None
) -> tuple[Step, ...]:
    """The steps of the one plain network, or of all networks over the free inputs."""
    if substitution is not None:
        substitution.check(query.n_inputs)
    elif query.is_plain:
        return read_network(next(iter(files.values())))
    return joined_steps(query, files, substitution)


def _read(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise CertificateError(f"cannot read {str(path)!r}: {error}") from error


def cases(tree: Tree) -> Iterator[Case]:
    """The leaves of a tree, in order.

    Raises:
        CertificateError: the nodes do not form one tree.
    """
    pending: list[tuple[Cut, ...]] = [()]
    n_leaves = 0
    for layer, index, point in zip(
        tree.layer.tolist(), tree.index.tolist(), tree.point.tolist(), strict=True
    ):
        if not pending:
            raise CertificateError("nodes are left over behind the tree")
        cuts = pending.pop()
        if layer == LEAF:
            yield Case(n_leaves, cuts)
            n_leaves += 1
        else:
            pending += [(*cuts, (layer, index, point, True)), (*cuts, (layer, index, point, False))]
    if pending:
        raise CertificateError("the tree is cut short: a case is missing")


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """How to bound some cases: rows of the arrays of `Tree`, and the multipliers of their cuts."""

    weights: Array
    multipliers: Array
    slopes: Mapping[int, NDArray[Any]]


class Derivation:
    """Sound lower bounds for cases of one clause.

    Args:
        steps: the network.
        goal: the clause.
        range_slopes: slopes for the ranges, as in `Tree`; None or empty for the default rule.
        known: ranges over whole boxes, kept for other clauses of the same box.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        goal: Goal,
        range_slopes: Mapping[tuple[int, int], NDArray[Any]] | None = None,
        known: dict[bytes, Ranges] | None = None,
    ) -> None:
        self.steps, self.goal = steps, goal
        self.relus = [at for at, step in enumerate(steps) if step.kind == "relu"]
        self.range_slopes: dict[int, dict[int, Array]] = {}
        for (layer, earlier), slopes in (range_slopes or {}).items():
            mine = self.range_slopes.setdefault(self.relus[layer], {})
            mine[self.relus[earlier]] = slopes.astype(np.float64)
        self.known = {} if known is None or range_slopes else known

    def bounds(self, cases: Sequence[Case], advice: Advice) -> Array:
        """Lower bounds of the weighted rows, ``(b,)``; infinite for empty cases."""
        cuts, weights, last = Cuts.of(cases), advice.weights, len(self.steps) - 1
        lower, upper = cuts.apply(INPUT, self.goal.lower[None], self.goal.upper[None], len(cases))
        ranges = self.ranges(lower, upper, shared=not (cuts.layer == INPUT).any())
        lines, is_empty = self.lines(cuts, ranges, advice, len(cases))
        is_empty |= (lower > upper).any(axis=1)
        coefficients = {last: (weights @ self.goal.of_outputs)[:, None]}
        bound = start(self.steps, ranges, coefficients, len(cases), 1)
        factor = gamma(weights.shape[1])
        size = weights @ np.abs(self.goal.of_outputs)
        bound.charge(size[:, None], factor * ranges.magnitude(last))
        if self.goal.of_inputs.any():
            bound.put(0, (weights @ self.goal.of_inputs)[:, None])
            size = weights @ np.abs(self.goal.of_inputs)
            bound.charge(size[:, None], factor * ranges.magnitude(0))
        bound.add_constant(weights[:, None], self.goal.constants[None])
        bound.charge(weights[:, None], factor * np.abs(self.goal.constants[None]))
        self.add_cuts(bound, cuts, advice.multipliers)
        with np.errstate(over="ignore", invalid="ignore"):
            found = bound.lower(lines)[:, 0]
        return np.where(is_empty, np.inf, np.where(np.isfinite(found), found, -np.inf))

    def ranges(self, lower: Array, upper: Array, shared: bool) -> Ranges:
        """Ranges over boxes ``(b, p)``; over the clause's own box (shared) only once."""
        if not shared:
            return propagate(self.steps, lower, upper, self.range_slopes)[0]
        key = lower.tobytes() + upper.tobytes()
        if key not in self.known:
            self.known.clear()  # clauses of one box follow each other
            self.known[key] = propagate(self.steps, lower, upper, self.range_slopes)[0]
        return self.known[key]

    def lines(
        self, cuts: Cuts, ranges: Ranges, advice: Advice, size: int
    ) -> tuple[dict[int, Lines], NDArray[np.bool_]]:
        """Lines of every ReLU where cuts and slopes are known, and which cases are empty."""
        is_empty = np.zeros(size, dtype=bool)
        found: dict[int, Lines] = {}
        for layer, at in enumerate(self.relus):
            (source,) = self.steps[at].sources
            lower, upper = cuts.apply(layer, ranges.lower[source], ranges.upper[source], size)
            empty = lower > upper
            is_empty |= empty.any(axis=1)
            slopes = advice.slopes.get(layer)
            if slopes is not None:
                slopes = slopes[:, None].astype(np.float64)
            found[at] = relu_lines(np.where(empty, upper, lower), upper, slopes)
        return found, is_empty

    def add_cuts(self, bound: LinearBound, cuts: Cuts, given: Array) -> None:
        """Add ``-b (z - point)`` for a case above and ``b (z - point)`` below: never positive."""
        of_neurons = cuts.layer != INPUT
        multipliers = np.zeros(len(cuts.layer))
        multipliers[of_neurons] = given
        signed = np.where(cuts.above, -multipliers, multipliers)
        for layer in np.unique(cuts.layer[of_neurons]).tolist():
            (source,) = self.steps[self.relus[layer]].sources
            mine = cuts.layer == layer
            row, index, point = cuts.row[mine], cuts.index[mine], cuts.point[mine]
            a = np.zeros((len(bound.constant), 1, self.steps[source].size))
            np.add.at(a[:, 0], (row, index), signed[mine])
            shift, size = np.zeros_like(bound.constant), np.zeros_like(bound.constant)
            np.subtract.at(shift[:, 0], row, signed[mine] * point)
            magnitude = bound.ranges.magnitude(source)
            reach = magnitude[row if len(magnitude) > 1 else 0, index] + np.abs(point)
            np.add.at(size[:, 0], row, multipliers[mine] * reach)
            bound.constant = bound.constant + shift
            bound.error = bound.error + gamma(len(row)) * size + 4 * UNIT * np.abs(bound.constant)
            bound.put(source, a)


@dataclass(frozen=True, slots=True, eq=False)
class _Clause:
    """A tree beside the clause that it has to exclude."""

    steps: Sequence[Step]
    goal: Goal
    tree: Tree
    number: int
    known: dict[bytes, Ranges]

    def fail(self, message: str) -> CertificateError:
        """The refusal with the clause's number."""
        return CertificateError(f"clause {self.number}: {message}")

    def check_arrays(self) -> None:
        """Sizes and signs of everything that leaves carry."""
        tree = self.tree
        n_leaves = int((tree.layer == LEAF).sum())
        wanted = (n_leaves, len(self.goal.constants))
        if tree.weights.shape != wanted:
            raise self.fail(f"weights are {tree.weights.shape}, expected {wanted}")
        if (tree.weights < 0).any() or (tree.multipliers < 0).any():
            raise self.fail("a weight or a multiplier is negative")
        sizes = [step.size for step in self.steps if step.kind == "relu"]
        self.check_cuts({INPUT: self.steps[0].size, **dict(enumerate(sizes))})
        self.check_slopes(n_leaves, sizes)

    def check_cuts(self, limits: Mapping[int, int]) -> None:
        """Every cut names a value; ``limits`` are the numbers of values by layer."""
        tree = self.tree
        for layer in np.unique(tree.layer[tree.layer != LEAF]).tolist():
            index = tree.index[tree.layer == layer]
            if layer not in limits or index.min() < 0 or index.max() >= limits[layer]:
                raise self.fail(f"a cut of layer {layer} names a value that does not exist")

    def check_slopes(self, n_leaves: int, sizes: Sequence[int]) -> None:
        """Slopes are those of ReLUs that exist, as many as they have values."""
        tree = self.tree
        for layer, slopes in tree.slopes.items():
            if not 0 <= layer < len(sizes) or slopes.shape != (n_leaves, sizes[layer]):
                raise self.fail(f"slopes of ReLU {layer} are {slopes.shape}")
        for (layer, earlier), slopes in tree.range_slopes.items():
            exists = 0 <= earlier < layer < len(sizes)
            if not exists or slopes.shape != (2 * sizes[layer], sizes[earlier]):
                raise self.fail(f"slopes for the ranges of ReLU {layer} are {slopes.shape}")

    def exclude(self, done: list[float]) -> None:
        """Derive every case; raise for the first that is not excluded."""
        self.check_arrays()
        derivation = Derivation(self.steps, self.goal, self.tree.range_slopes, self.known)
        found, n_used = cases(self.tree), 0
        while batch := list(itertools.islice(found, BATCH)):
            used = sum(cut[0] != INPUT for case in batch for cut in case.cuts)
            advice = self.advice(batch, slice(n_used, n_used + used))
            if len(advice.multipliers) != used:
                raise self.fail("there are fewer multipliers than cuts")
            n_used += used
            for case, value in zip(batch, derivation.bounds(batch, advice).tolist(), strict=True):
                if not value > 0.0:
                    raise self.fail(f"case {case.number} is not excluded, its bound is {value:.3g}")
                done.append(value)
        if n_used != len(self.tree.multipliers):
            raise self.fail("there are more multipliers than cuts")

    def advice(self, batch: Sequence[Case], used: slice) -> Advice:
        """What the tree says about consecutive cases."""
        rows = slice(batch[0].number, batch[-1].number + 1)
        slopes = {layer: values[rows] for layer, values in self.tree.slopes.items()}
        return Advice(self.tree.weights[rows], self.tree.multipliers[used], slopes)


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """All cuts of a batch of cases, case by case from the root down: arrays ``(c,)``."""

    row: NDArray[np.int64]
    layer: NDArray[np.int64]
    index: NDArray[np.int64]
    point: Array
    above: NDArray[np.bool_]

    @classmethod
    def of(cls, batch: Sequence[Case]) -> Cuts:
        """The cuts of some cases."""
        row = [i for i, case in enumerate(batch) for _ in case.cuts]
        layer, index, point, above = (
            zip(*(cut for case in batch for cut in case.cuts), strict=True) if row else ((),) * 4
        )
        return cls(
            np.array(row, dtype=np.int64),
            np.array(layer, dtype=np.int64),
            np.array(index, dtype=np.int64),
            np.array(point, dtype=np.float64),
            np.array(above, dtype=bool),
        )

    def apply(self, layer: int, lower: Array, upper: Array, size: int) -> tuple[Array, Array]:
        """Ranges ``(b or 1, n)`` of a layer after its cuts, for ``size`` cases."""
        mine = self.layer == layer
        if not mine.any():
            return lower, upper
        lower, upper = (np.broadcast_to(v, (size, v.shape[1])).copy() for v in (lower, upper))
        high, low = mine & self.above, mine & ~self.above
        np.maximum.at(lower, (self.row[high], self.index[high]), self.point[high])
        np.minimum.at(upper, (self.row[low], self.index[low]), self.point[low])
        return lower, upper
