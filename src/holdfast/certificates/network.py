"""Read an ONNX file as a chain of exact affine maps, ReLUs and sums, for checking proofs.

Written for the checker alone: it takes the weights from the file itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from holdfast.certificates.errors import CertificateError
from holdfast.certificates.operators import HANDLERS
from holdfast.certificates.steps import Reader, Step

DOMAINS = ("", "ai.onnx")


def read_network(path: str | Path) -> tuple[Step, ...]:
    """The steps of an ONNX file, in order; the last one is the output.

    Raises:
        CertificateError: unreadable, not finite, several inputs or outputs, or with an operator
            that proofs do not cover (which is named).
    """
    reader = Reader(_load(path), [])
    if len(reader.inputs) != 1 or len(reader.graph.output) != 1:
        raise CertificateError("only networks with one input and one output are supported")
    reader.found.append(Step("input", (), reader.size(0)))
    _read(reader, [0])
    if reader.places[reader.graph.output[0].name] != len(reader.found) - 1:
        raise CertificateError("the output of the network is not its last step")
    return tuple(reader.found)


def append_network(
    found: list[Step], path: str | Path, inputs: Sequence[int], hidden: Sequence[str]
) -> list[int]:
    """Add the steps of an ONNX file behind others.

    Args:
        found: the steps so far, to be added to.
        path: the file.
        inputs: numbers of the steps that are its inputs.
        hidden: names of inner values that are asked for beside the outputs.

    Returns:
        Numbers of the steps that compute the inner values and the outputs.

    Raises:
        CertificateError: as `read_network`, or with other inputs.
    """
    reader = Reader(_load(path), found, hidden)
    sizes = [found[at].size for at in inputs]
    if sizes != [reader.size(i) for i in range(len(reader.inputs))]:
        raise CertificateError(f"the inputs of {str(path)!r} are not those that are declared")
    _read(reader, inputs)
    names = [*hidden, *(o.name for o in reader.graph.output)]
    if missing := [name for name in names if name not in reader.places]:
        raise CertificateError(f"{str(path)!r} has no value {missing[0]!r} that is computed")
    return [reader.places[name] for name in names]


def _load(path: str | Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:
        raise CertificateError(f"cannot read the network {str(path)!r}: {error}") from error


def _read(reader: Reader, inputs: Sequence[int]) -> None:
    """Add all steps; ``inputs`` are the numbers of those that the inputs are."""
    reader.places |= {v.name: at for v, at in zip(reader.inputs, inputs, strict=True)}
    for node in reader.graph.node:
        if node.op_type == "Constant":
            (value,) = node.attribute
            reader.constants[node.output[0]] = _attribute(value)
            continue
        handler = HANDLERS.get(node.op_type)
        if handler is None or node.domain not in DOMAINS:
            raise CertificateError(
                f"operator {node.op_type} ({node.output[0]}) is not covered by proofs; "
                f"covered: {', '.join(sorted(HANDLERS))}"
            )
        try:
            handler(reader, node, {a.name: _attribute(a) for a in node.attribute})
        except CertificateError:
            raise
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise CertificateError(
                f"operator {node.op_type} ({node.output[0]}) has a form that proofs do not "
                f"cover: {error}"
            ) from error


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value
