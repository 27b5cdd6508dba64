"""idx files, the format of MNIST: ``t10k-images-idx3-ubyte.gz`` with its labels beside it."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from holdfast.data import ArrayData, Data
from holdfast.errors import DataError
from holdfast.modalities._labels import class_numbers
from holdfast.modalities._source import Source
from holdfast.modalities.npz import as_inputs

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def load_idx(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """Images and labels: ``images`` with the labels found beside it, or ``images,labels``.

    Raises:
        DataError: where a file is not idx, is cut short, or the labels are not found.
    """
    first, _, second = spec.partition(",")
    images = Path(first).expanduser()
    labels = Path(second).expanduser() if second else _labels_beside(images)
    x, turned = as_inputs(read_idx(images), images)
    y, _, _ = class_numbers(read_idx(labels), str(labels))
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x)} samples, but {labels} holds {len(y)} labels.")
    description = "; ".join(text for text in (images.name, turned) if text)
    return ArrayData(torch.from_numpy(x), y, (), description)


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, packed or not.

    Raises:
        DataError: where it cannot be read, is not idx, or has another length than its header says.
    """
    try:
        with _opened(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
                raise DataError(f"{path} is not an idx file: it begins with {head!r}.")
            shape = tuple(int(s) for s in np.frombuffer(file.read(4 * head[3]), ">u4"))
            dtype = np.dtype(_TYPES[head[2]])
            expected = math.prod(shape) * dtype.itemsize
            content = bytearray(file.read(expected + 1))  # to the end: gzip checks its sum there
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}. Fetch the file again.") from None
    if len(shape) != head[3] or len(content) != expected:
        raise DataError(
            f"{path} is damaged: its header {shape} announces {expected} bytes, but "
            f"{'more' if len(content) > expected else len(content)} follow. Fetch the file again."
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _opened(path: Path) -> gzip.GzipFile:
    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if is_packed else path.open("rb")  # type: ignore[return-value]


def _labels_beside(images: Path) -> Path:
    """The labels file by the canonical name: images-idx3 -> labels-idx1, packed or not."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    tried = [images.with_name(stem), images.with_name(f"{stem}.gz")]
    for path in tried:
        if path != images and path.is_file():
            return path
    raise DataError(
        f"No labels beside {images}: looked for {tried[0].name} and {tried[1].name}. Give both "
        "files: images,labels."
    )


def _is_idx(spec: str) -> bool:
    first = spec.partition(",")[0]
    path = Path(first).expanduser()
    if not path.is_file() or path.suffix.lower() in {".csv", ".tsv", ".parquet", ".npz"}:
        return False
    try:
        with _opened(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return "idx" in path.name
    is_idx = len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES
    return is_idx or "idx" in path.name


SOURCE = Source(
    name="idx",
    summary="t10k-images-idx3-ubyte.gz, with the labels beside it, or images,labels",
    accepts=_is_idx,
    load=load_idx,
)
