"""Reads ONNX files (operator sets 7 to current) into graphs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.graphs.builder import (
    Builder,
    Call,
    Ref,
    built,
    framework_shape,
    is_variable,
    known,
    readable,
)
from holdfast.graphs.errors import GraphError, UnsupportedOperatorError
from holdfast.graphs.graph import Graph
from holdfast.graphs.simplify import simplify

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto


_SHORT = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""Floating-point types that numpy has no name for."""
_FUNCTIONS_FROM = 18  # the operator set that the standard's functions are written in


def read_onnx(source: str | os.PathLike[str] | ModelProto, fold: bool = True) -> Graph:
    """Turns an ONNX file into a graph that can be run, bounded and differentiated.

    Args:
        source: Path of the file, or a loaded model.
        fold: Merge chains of linear steps; with False only what rounds nothing is merged.

    Returns:
        The graph; its input and output shapes leave out the batch axis (the first axis).

    Raises:
        GraphError: The file is no ONNX model, or has several inputs or outputs, or NaN weights.
        UnsupportedOperatorError: An operator has no bounds here.
    """
    model = load_model(source)
    constants = _constants(model.graph)
    info = _single_input(model.graph, set(constants))
    builder = Builder(sample_shape(info))
    if len(model.graph.output) != 1:
        names = [o.name for o in model.graph.output]
        raise GraphError(f"the network has outputs {names}; a single one is expected")
    wanted = [model.graph.output[0].name]
    (output,) = read_into(builder, model, {info.name: Ref(0, builder.nodes[0].shape)}, wanted)
    return simplify(builder.graph(output), rounding=fold)


def load_model(source: str | os.PathLike[str] | ModelProto) -> ModelProto:
    """The model of a file, or the model itself.

    Raises:
        GraphError: The file is no ONNX model.
    """
    import onnx

    return source if isinstance(source, onnx.ModelProto) else _load(os.fspath(source))


def read_into(
    builder: Builder, model: ModelProto, inputs: Mapping[str, Ref], wanted: Sequence[str]
) -> list[Ref]:
    """Appends a network to a graph under construction.

    Args:
        builder: The graph.
        model: The network.
        inputs: What its inputs are, by name.
        wanted: Names of the values to return: outputs, or values inside.

    Returns:
        One node for each wanted value.

    Raises:
        GraphError: A weight is not finite, or a wanted value does not exist or is constant.
        UnsupportedOperatorError: An operator has no bounds here.
    """
    model = _inlined(model)
    opset = _opset(model)
    values: dict[str, Any] = {**_constants(model.graph), **inputs}
    for position, node in enumerate(model.graph.node):
        place = node.name or f"{node.op_type}_{position}"
        with readable(node.op_type, place, "does onnx.checker.check_model accept the file?"):
            _read_node(node, place, values, builder, opset)
    return [_value(values, name, model) for name in wanted]


def _value(values: Mapping[str, Any], name: str, model: ModelProto) -> Ref:
    if name not in values:
        names = [output for node in model.graph.node for output in node.output]
        near = difflib.get_close_matches(name, names, 3) or names[-3:]
        raise GraphError(
            f"the network has no value {name!r}; there are {len(names)}, such as {near}"
        )
    if not isinstance(values[name], Ref):
        raise GraphError(f"the value {name!r} of the network does not depend on the input")
    return values[name]


def _constants(graph: GraphProto) -> dict[str, Tensor]:
    """The stored weights by name."""
    import onnx

    constants = {t.name: _tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    for name, value in constants.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise GraphError(f"weight {name!r} has values that are not finite")
    return constants


def _inlined(model: ModelProto) -> ModelProto:
    """The model with functions of the standard, and its own, in place of operators not known."""
    import onnx.version_converter
    from onnx import inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    unknown = {n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx")}
    unknown -= {*known("onnx"), "Constant", "Shape"}
    functions = [("", name) for name in sorted(unknown) if _is_function(name)]
    if not functions:
        return model
    if _opset(model) < _FUNCTIONS_FROM:
        model = onnx.version_converter.convert_version(model, _FUNCTIONS_FROM)
    return inliner.inline_selected_functions(model, functions, inline_schema_functions=True)


def _is_function(name: str) -> bool:
    """Whether the standard says what an operator is made of."""
    import onnx

    schema: Any = onnx.defs.get_schema(name) if onnx.defs.has(name) else None
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _opset(model: ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _load(path: str) -> ModelProto:
    import onnx

    try:
        return onnx.load(path)
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file") from None
    except Exception as error:
        raise GraphError(f"{path}: not a readable ONNX model ({error})") from error


def free_inputs(graph: GraphProto, constants: set[str] | None = None) -> list[ValueInfoProto]:
    """The inputs that no initialiser gives a value to."""
    known = {t.name for t in graph.initializer} if constants is None else constants
    return [i for i in graph.input if i.name not in known]


def _single_input(graph: GraphProto, constants: set[str]) -> ValueInfoProto:
    inputs = free_inputs(graph, constants)
    if len(inputs) != 1:
        raise GraphError(
            f"the network has inputs {[i.name for i in inputs]}; a single one is expected"
        )
    return inputs[0]


def sample_shape(info: ValueInfoProto, declared: Sequence[int] = ()) -> tuple[int, ...]:
    """Shape of one sample of an input.

    Args:
        info: The input.
        declared: Shape with the batch axis that open axes take theirs from.

    Raises:
        GraphError: An axis beside the batch stays open.
    """
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in info.type.tensor_type.shape.dim]
    # Files write the batch axis as 1, 0 or a name; a lone fixed axis is a sample without batch.
    sample = dims if len(dims) == 1 and dims[0] > 1 else dims[1:]
    if len(declared) == len(dims):
        given = declared[len(dims) - len(sample) :]
        sample = [d if d > 0 else g for d, g in zip(sample, given, strict=True)]
    if any(d < 1 for d in sample):
        raise GraphError(f"input {info.name!r} has shape {dims}; only the batch axis may be open")
    return tuple(sample)


def _tensor(array: np.ndarray) -> Tensor:
    """A copy, as ONNX arrays are read-only; shorter floats exactly in float32."""
    is_short = array.dtype == np.float16 or array.dtype.name in _SHORT
    return torch.from_numpy(np.array(array, dtype=np.float32 if is_short else None))


def _read_node(
    node: NodeProto, place: str, values: dict[str, Any], builder: Builder, opset: int
) -> None:
    args = [values.get(name) if name else None for name in node.input]
    if not any(is_variable(a) for a in args):
        results: Any = _evaluate(node, list(args))
    elif node.op_type == "Shape":
        results = torch.tensor(framework_shape(values[node.input[0]]))
    else:
        build = known("onnx").get(node.op_type)
        if build is None:
            raise UnsupportedOperatorError(node.op_type, place)
        attributes = {**_attributes(node), "n_outputs": len(node.output)}
        results = built(build, Call(node.op_type, args, attributes, builder, place, opset))
    results = results if isinstance(results, list) else [results]
    values.update(zip(node.output, results, strict=False))


def _attributes(node: NodeProto) -> dict[str, Any]:
    import onnx

    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = _tensor(onnx.numpy_helper.to_array(value))
        found[attribute.name] = value
    return found


def _evaluate(node: NodeProto, args: list[Tensor | None]) -> list[Tensor]:
    """Computes a node whose inputs are all constants."""
    from onnx.reference import ReferenceEvaluator

    feeds = {n: a.numpy() for n, a in zip(node.input, args, strict=True) if a is not None}
    outputs = ReferenceEvaluator(node).run(None, feeds)
    return [_tensor(np.asarray(o)) for o in outputs]  # type: ignore[arg-type]
