"""Write and read counterexamples the way the verification competition wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.properties.errors import PropertyError
from holdfast.properties.record import Network, Query, Tensor

Vector = NDArray[np.float64]


def format_counterexample(query: Query, x: ArrayLike, y: ArrayLike) -> str:
    """The assignment that follows ``sat``: inputs ``(n_inputs,)`` and outputs ``(n_outputs,)``.

    VNN-LIB 1.0: ``((X_0 v) ... (Y_0 v) ...)``, one pair a line. VNN-LIB 2.0: for each variable a
    line with name, type and shape, then its values row by row. Values are written
    with as many digits as float64 needs, so that a float32 is read back unchanged.

    Raises:
        PropertyError: the lengths are not those of the property.
    """
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    query.check_counts(len(x), len(y))
    if query.version == "1.0":
        pairs = [
            f"({letter}_{i} {float(v)!r})"
            for letter, values in (("X", x), ("Y", y))
            for i, v in enumerate(values)
        ]
        return "(" + "\n ".join(pairs) + ")"
    lines = []
    for tensor, is_input in _tensors(query.networks):
        lines.append(f"{tensor.name} {tensor.element_type} [{','.join(map(str, tensor.shape))}]")
        values = (x if is_input else y)[tensor.offset : tensor.offset + tensor.size]
        lines.extend(repr(float(v)) for v in values)
    return "\n".join(lines)


def parse_counterexample(query: Query, text: str) -> tuple[Vector, Vector]:
    """Inputs ``(n_inputs,)`` and outputs ``(n_outputs,)`` of an assignment in either format.

    Raises:
        PropertyError: a value is missing or stands twice.
    """
    x, y = np.full(query.n_inputs, np.nan), np.full(query.n_outputs, np.nan)
    found = _pairs(text) if query.version == "1.0" else _blocks(query, text)
    for is_input, index, value in found:
        vector = x if is_input else y
        if index >= len(vector) or not np.isnan(vector[index]):
            raise PropertyError(
                f"{'input' if is_input else 'output'} {index} is "
                f"{'given twice' if index < len(vector) else 'not declared'}"
            )
        vector[index] = value
    if missing := int(np.isnan(x).sum() + np.isnan(y).sum()):
        raise PropertyError(f"the assignment lacks {missing} of {len(x) + len(y)} values")
    return x, y


def _tensors(networks: tuple[Network, ...]) -> Iterator[tuple[Tensor, bool]]:
    for network in networks:
        yield from ((tensor, True) for tensor in network.inputs)
        yield from ((tensor, False) for tensor in (*network.hidden, *network.outputs))


def _pairs(text: str) -> Iterator[tuple[bool, int, float]]:
    for letter, index, value in re.findall(r"\(\s*([XY])_(\d+)\s+([^\s()]+)\s*\)", text):
        yield letter == "X", int(index), float(value)


def _blocks(query: Query, text: str) -> Iterator[tuple[bool, int, float]]:
    known = {tensor.name: (tensor, is_input) for tensor, is_input in _tensors(query.networks)}
    current, is_input, position = None, True, 0
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    for line in lines[lines[:1] == ["sat"] :]:
        name = line.split()[0]
        if name in known:
            (current, is_input), position = known[name], 0
        elif current is None or position >= current.size:
            raise PropertyError(f"{line!r} stands where a declared variable was expected")
        else:
            yield is_input, current.offset + position, float(line)
            position += 1
