"""Several networks as one list of steps, for checking proofs about properties of them all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.exact import ExactQuery
from holdfast.certificates.network import append_network
from holdfast.certificates.steps import Step
from holdfast.certificates.substitution import Substitution

File = str | os.PathLike[str]
Files = File | Mapping[str, File]


def assigned(query: ExactQuery, files: Files) -> dict[str, Path]:
    """The file of every network that has one of its own, in the order of the text.

    Raises:
        CertificateError: there are others.
    """
    own = [net.name for net in query.networks if net.same_as is None] or [""]
    if not isinstance(files, Mapping) and len(own) == 1:
        files = {own[0]: files}
    if not isinstance(files, Mapping) or set(own) - set(files):
        raise CertificateError(f"a file is needed for each of the networks {', '.join(own)}")
    return {name: Path(files[name]) for name in own}


def joined_steps(
    query: ExactQuery, files: Mapping[str, Path], substitution: Substitution | None
) -> tuple[Step, ...]:
    """All networks over one input vector, their values one behind another at the end.

    Raises:
        CertificateError: a network is not as it is declared, or proofs do not cover it.
    """
    free = np.arange(query.n_inputs)
    base, shift = (free, np.full_like(free, -1)) if substitution is None else (
        substitution.base, substitution.shift)  # fmt: skip
    size = query.n_inputs if substitution is None else substitution.size
    found, ends = [Step("input", (), size)], []
    for net in query.networks:
        inputs = []
        for places in net.inputs:
            inputs.append(len(found))
            found.append(_selection(base[places], shift[places], size))
        values = append_network(found, files[net.same_as or net.name], inputs, net.hidden)
        if [found[at].size for at in values] != list(net.sizes):
            raise CertificateError(f"the values of network {net.name} are not those declared")
        ends += values
    return _stacked(*_merged(found, ends))


def _selection(base: np.ndarray, shift: np.ndarray, size: int) -> Step:
    rows = np.flatnonzero(shift >= 0)
    rows, columns = np.r_[np.arange(len(base)), rows], np.r_[base, shift[rows]]
    weight = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(base), size))
    return Step("affine", (0,), len(base), weight, np.zeros(len(base)))


def _stacked(found: list[Step], ends: Sequence[int]) -> tuple[Step, ...]:
    """Add the last steps: every value moved to its place, and their sum."""
    total, offset, sums = sum(found[at].size for at in ends), 0, -1
    for at in ends:
        size = found[at].size
        entries = np.ones(size), (offset + np.arange(size), np.arange(size))
        weight = sparse.csr_array(entries, shape=(total, size))
        found.append(Step("affine", (at,), total, weight, np.zeros(total)))
        offset += size
        if sums >= 0:
            found.append(Step("add", (sums, len(found) - 1), total))
        sums = len(found) - 1
    return tuple(found)


def _merged(steps: Sequence[Step], ends: Sequence[int]) -> tuple[list[Step], list[int]]:
    """Equal steps of equal sources once only, as the verifier has them."""
    known: dict[Any, int] = {}
    place: list[int] = []
    found: list[Step] = []
    for step in steps:
        sources = tuple(place[at] for at in step.sources)
        key = (step.kind, sources, step.size, *map(_bytes, (step.weight, step.bias)), step.relative)
        if key not in known:
            known[key] = len(found)
            found.append(replace(step, sources=sources))
        place.append(known[key])
    return found, [place[at] for at in ends]


def _bytes(values: Any) -> Any:
    if isinstance(values, sparse.csr_array):
        return tuple(map(_bytes, (values.data, values.indices, values.indptr)))
    return None if values is None else np.ascontiguousarray(values).tobytes()
