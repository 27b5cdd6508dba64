"""The first look at the data, before the model runs: ranges, labels, and each sample's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.data import Data
from holdfast.errors import DataError
from holdfast.threat import Domain

_CHUNK = 512
_ROUNDING = 1e-6  # of the domain's width: what de-normalising in float32 leaves behind


@dataclass(frozen=True, slots=True)
class Scan:
    """What is known of the data.

    Attributes:
        keys: Hash of input and label of every sample ``(n,)`` int64: random numbers hang on it, not
            on the sample's place.
        y: Labels ``(n,)`` int64.
        hash: Of the whole data, in order.
    """

    keys: Tensor
    y: Tensor
    hash: str


def chunks(n: int, size: int = _CHUNK) -> Iterator[range]:
    """``range(n)`` in pieces."""
    for start in range(0, n, size):
        yield range(start, min(n, start + size))


def scan(data: Data, domain: Domain) -> Scan:
    """Read all samples once.

    Raises:
        DataError: for values outside the domain, NaN, negative labels or changing shapes; the
            message names the range seen and the likely cause.
    """
    keys: list[int] = []
    labels: list[Tensor] = []
    whole = hashlib.blake2b(digest_size=16)
    for rows in chunks(len(data)):
        x, y = data.fetch(rows)
        _check_inputs(x, y, domain, rows, data)
        for sample, label in zip(x.numpy(), y.tolist(), strict=True):
            digest = hashlib.blake2b(sample.tobytes(), digest_size=8, key=str(label).encode())
            keys.append(int.from_bytes(digest.digest(), "little", signed=True))
        labels.append(y)
    y = torch.cat(labels)
    whole.update(np.asarray(keys, np.int64).tobytes())
    return Scan(torch.tensor(keys, dtype=torch.int64), y, whole.hexdigest())


def _check_inputs(x: Tensor, y: Tensor, domain: Domain, rows: range, data: Data) -> None:
    if tuple(x.shape[1:]) != data.shape:
        raise DataError(
            f"Samples {rows.start} to {rows.stop - 1} have shape {tuple(x.shape[1:])}, the first "
            f"has {data.shape}. All inputs must have one shape."
        )
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        bad = rows[int((~finite).nonzero()[0])]
        raise DataError(f"Sample {bad} has NaN or infinite values. Remove or repair it.")
    if bool((y < 0).any()):
        bad = rows[int((y < 0).nonzero()[0])]
        raise DataError(
            f"Sample {bad} has label {int(y[bad - rows.start])}. Labels are counted from 0."
        )
    lower, upper = domain.tensors(x)
    slack = _ROUNDING * domain.width
    if bool((x < lower - slack).any()) or bool((x > upper + slack).any()):
        raise DataError(_range_message(x, domain, rows))


def _range_message(x: Tensor, domain: Domain, rows: range) -> str:
    low, high = float(x.min()), float(x.max())
    if high > 2 and high <= 255 and low >= 0:
        cause = "They look like 0-255 pixels: divide them by 255, or give --domain 0,255"
    elif low < 0 and abs(float(x.mean())) < 1.5 and high < 20:
        cause = (
            "They look normalised: give the inputs before normalisation and let Holdfast apply it "
            f"(--mean, --std), or give the range of valid inputs (--domain {low:.3g},{high:.3g})"
        )
    else:
        cause = f"Give the range of valid inputs, e.g. --domain {low:.3g},{high:.3g}"
    return (
        f"Clean inputs lie outside the domain {domain.describe()}: samples {rows.start} to "
        f"{rows.stop - 1} have values from {low:.4g} to {high:.4g}. {cause}."
    )


def inside(x: Tensor, domain: Domain) -> Tensor:
    """``x`` with rounding errors at the domain's edge removed."""
    lower, upper = domain.tensors(x)
    return torch.minimum(torch.maximum(x, lower), upper)
