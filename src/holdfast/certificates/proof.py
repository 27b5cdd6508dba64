"""Proof files: a tree of cases for each way to violate a property, compact and versioned.

A file is a numpy archive (zip) with a JSON header and one set of arrays for each clause. A tree is
written in preorder: an inner node cuts one value at a point, its first child is the part at or
below the point, its second the part at or above. What the leaves carry (weights of the rows,
slopes, multipliers) only says how a bound may be derived: any numbers give a sound bound, bad ones
a useless one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.substitution import Substitution

FORMAT, VERSION = "holdfast-proof", 1
LEAF, INPUT = -2, -1
MAX_NODES = 50_000_000
DAMAGE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)  # what reading a damaged archive may raise


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The cases of one clause, L leaves among N nodes.

    Attributes:
        layer: ``(N,)``: ``LEAF``, ``INPUT`` for a cut of an input, k for one before the k-th ReLU.
        index: ``(N,)``: which input or neuron is cut.
        point: ``(N,)``: where.
        weights: ``(L, r)``: the combination of the rows shown to be positive.
        multipliers: ``(M,)``: for each leaf in turn, one for each cut of a neuron above it.
        slopes: for the k-th ReLU ``(L, n)``: lower slopes of the last bound; the default otherwise.
        range_slopes: for the ranges before the k-th ReLU and an earlier j-th one ``(2 n, m)``.
    """

    layer: NDArray[np.int32]
    index: NDArray[np.int64]
    point: NDArray[np.float64]
    weights: NDArray[np.float64]
    multipliers: NDArray[np.float64]
    slopes: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    range_slopes: Mapping[tuple[int, int], NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """A claim that no input violates the property, with one tree for each clause.

    Attributes:
        network_sha256: of the ONNX file; of several, in the order of the text, joined by "+".
        property_sha256: of the text of the property.
        trees: one for each clause that does not contradict itself, in the order of the text.
        substitution: by what the inputs are written, None for themselves.
    """

    network_sha256: str
    property_sha256: str
    trees: tuple[Tree, ...]
    substitution: Substitution | None = None

    @property
    def n_leaves(self) -> int:
        """Number of cases in all."""
        return sum(len(tree.weights) for tree in self.trees)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def save_proof(proof: Proof, path: str | Path) -> None:
    """Write a proof file; an existing file is replaced only when the new one is complete."""
    path = Path(path)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "network_sha256": proof.network_sha256,
        "property_sha256": proof.property_sha256,
        "clauses": len(proof.trees),
    }
    arrays: dict[str, NDArray[Any]] = {}
    if proof.substitution is not None:
        arrays = {name: getattr(proof.substitution, name) for name in ("base", "shift")}
    for number, tree in enumerate(proof.trees):
        for name in ("layer", "index", "point", "weights", "multipliers"):
            arrays[f"{number}/{name}"] = getattr(tree, name)
        for layer, values in tree.slopes.items():
            arrays[f"{number}/slopes/{layer}"] = values
        for (layer, earlier), values in tree.range_slopes.items():
            arrays[f"{number}/range_slopes/{layer}/{earlier}"] = values
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header, indent=1))
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    part.replace(path)


def load_proof(path: str | Path) -> Proof:
    """Read a proof file.

    Raises:
        CertificateError: no such file, not a proof, of another version, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
            if header.get("format") != FORMAT or header.get("version") != VERSION:
                raise CertificateError(
                    f"{header.get('format')!r} version {header.get('version')!r} is not supported, "
                    f"only {FORMAT!r} version {VERSION}"
                )
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            arrays = {n: np.load(io.BytesIO(archive.read(f"{n}.npy")), allow_pickle=False)
                      for n in names}  # fmt: skip
            trees = tuple(_tree(arrays, number) for number in range(int(header["clauses"])))
            substitution = _substitution(arrays)
            return Proof(header["network_sha256"], header["property_sha256"], trees, substitution)
    except CertificateError:
        raise
    except FileNotFoundError as error:
        raise CertificateError(f"there is no proof file {str(path)!r}") from error
    except DAMAGE as error:
        raise CertificateError(f"{str(path)!r} is not a whole proof file: {error!r}") from error


def _substitution(arrays: Mapping[str, NDArray[Any]]) -> Substitution | None:
    found = [arrays[name] for name in ("base", "shift") if name in arrays]
    if not found:
        return None
    if len(found) < 2 or any(v.dtype.kind != "i" or v.ndim != 1 or not len(v) for v in found):
        raise CertificateError("the substitution is not two lists of positions")
    return Substitution(*found)


def _tree(arrays: Mapping[str, NDArray[Any]], number: int) -> Tree:
    prefix = f"{number}/"
    slopes, range_slopes = {}, {}
    for name, values in arrays.items():
        match name.removeprefix(prefix).split("/") if name.startswith(prefix) else []:
            case ["slopes", layer]:
                slopes[int(layer)] = _floats(name, values)
            case ["range_slopes", layer, earlier]:
                range_slopes[int(layer), int(earlier)] = _floats(name, values)
    layer, index = (arrays[prefix + name] for name in ("layer", "index"))
    point, weights, multipliers = (
        _floats(prefix + name, arrays[prefix + name]).astype(np.float64)
        for name in ("point", "weights", "multipliers")
    )
    if layer.dtype.kind != "i" or index.dtype.kind != "i" or layer.ndim != 1 or weights.ndim != 2:
        raise CertificateError(f"the tree of clause {number} has arrays of the wrong kind")
    if not layer.shape == index.shape == point.shape or len(layer) > MAX_NODES:
        raise CertificateError(f"the tree of clause {number} has arrays of different lengths")
    return Tree(layer, index, point, weights, multipliers.ravel(), slopes, range_slopes)


def _floats(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise CertificateError(f"array {name} holds something else than finite numbers")
    return values
