"""Captures a ``torch.nn.Module`` through ``torch.export``."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.export.exported_program import default_decompositions

from holdfast.graphs.batch_first import batch_first
from holdfast.graphs.builder import (
    Builder,
    Call,
    Layered,
    Ref,
    built,
    is_variable,
    known,
    leaves,
    readable,
)
from holdfast.graphs.errors import GraphError, UnsupportedOperatorError
from holdfast.graphs.graph import Graph
from holdfast.graphs.simplify import simplify


@final
@dataclass(frozen=True, slots=True)
class Trace:
    """A module exported once, from which graphs are read again and again.

    Exporting takes tenths of a second, reading milliseconds; so training can bound the weights of
    every step. Graphs of a trace hold the live tensors: gradients reach them, and on their device.

    Attributes:
        program: What ``torch.export`` made of the module in evaluation mode.
        module: The module whose weights are read.
        shapes: Shapes of all values in the order in which they are built, ``shapes[0]`` the input.
    """

    program: torch.export.ExportedProgram
    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]

    def graph(self, weights: Mapping[str, Tensor] | None = None) -> Graph:
        """The network with its present weights, or with others by the module's names.

        Args:
            weights: Tensors to take instead, also of buffers: batch statistics as
                ``bn.running_mean`` and ``bn.running_var``, or disturbed weights.
        """
        live: dict[str, Tensor] = dict(self.module.named_parameters(remove_duplicate=False))
        live.update(self.module.named_buffers(remove_duplicate=False))
        live.update(weights or {})
        builder = Builder(self.shapes[0], self.shapes)
        graph = builder.graph(_read(self.program, builder, live))
        first = next((t for t in live.values() if t.is_floating_point()), torch.zeros(()))
        return graph.to(first.dtype, first.device)


def trace(module: nn.Module, example: Tensor) -> Trace:
    """Exports a module in evaluation mode; the module itself stays untouched.

    Args:
        module: The network, one tensor in, one tensor out. Its structure must not change later.
        example: Inputs ``(n, *input_shape)``; only their shape and type matter.

    Raises:
        GraphError: The module cannot be exported, or mixes samples.
        UnsupportedOperatorError: An operator has no bounds here; names it and its place.
    """
    program = _export(module, example)
    builder = Builder(example.shape[1:])
    _read(program, builder, {})
    return Trace(program, module, tuple(n.shape for n in builder.nodes))


def capture(module: nn.Module, example: Tensor, fold: bool = True) -> Graph:
    """Turns a module in evaluation mode into a graph; the module itself stays untouched.

    Args:
        module: The network, one tensor in, one tensor out.
        example: Inputs ``(n, *input_shape)``; only their shape and type matter.
        fold: Merge chains of linear steps.

    Raises:
        GraphError: The module cannot be exported, or mixes samples.
        UnsupportedOperatorError: An operator has no bounds here; names it and its place.
    """
    builder = Builder(example.shape[1:])
    output = _read(_export(module, example), builder, {})
    return simplify(builder.graph(output), rounding=fold)


def _export(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    was_training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), batch_first():
            warnings.simplefilter("ignore")  # export warns of its own internals
            args = (example[:1].detach(),)
            return _decomposed(torch.export.export(module, args, strict=False))
    except Exception as error:
        raise GraphError(f"torch.export cannot capture {type(module).__name__}: {error}") from error
    finally:
        for m in was_training:
            m.training = True


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with what is not known taken apart, as far as torch can.

    Decomposing, which also removes writes, takes most of the time; so only what is not known is.
    """
    plainly = False
    for _ in range(_ROUNDS):
        unknown, writes = _unreadable(program)
        if not unknown and not writes:
            break
        table = default_decompositions()
        wanted: dict[Any, Any] = {op: table[op] for op in list(table) if _name(op) in unknown}
        if not wanted and plainly:
            break
        plainly = plainly or not wanted  # then composites alone are taken apart, and writes go
        program = program.run_decompositions(wanted)
    return program


def _unreadable(program: torch.export.ExportedProgram) -> tuple[set[str], bool]:
    """Names of operators that are not known, and whether any writes to its arguments."""
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    schemas = [t._schema for t in targets if hasattr(t, "_schema")]  # type: ignore[union-attr]
    expected = known("aten").keys() | _CREATORS | _CHECKS
    unknown = {s.name.split("::")[-1] for s in schemas} - expected
    return unknown, any(s.is_mutable for s in schemas)


def _name(operator: Any) -> str:
    schema = getattr(operator, "_schema", None)
    return "" if schema is None else schema.name.split("::")[-1]


_ROUNDS = 6  # what an operator is taken apart to may have to be taken apart again
# Operators without tensor arguments, evaluated as they are.
_CREATORS = {"arange", "full", "zeros", "ones", "scalar_tensor", "sym_size", "eye"}
# Checks of types that export leaves where a module converts; they compute nothing.
_CHECKS = {"_assert_tensor_metadata"}


def _read(
    program: torch.export.ExportedProgram, builder: Builder, live: Mapping[str, Tensor]
) -> Ref:
    """Builds the program's nodes with ``live`` tensors by name, else with copies of the stored."""
    signature = program.graph_signature
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored: dict[str, Any] = {**program.constants, **program.state_dict}
    values: dict[torch.fx.Node, Any] = {}
    output: Any = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = lifted.get(node.name)
            if name is None:
                values[node] = Ref(0, builder.nodes[0].shape)
            else:
                values[node] = live[name] if name in live else stored[name].detach().cpu()
        elif node.op == "call_function":
            values[node] = _call(node, values, builder)
        elif node.op == "output":
            results: Any = node.args[0]
            if len(results) != 1:
                raise GraphError(f"the network has {len(results)} outputs; one is expected")
            output = values[results[0]]
    if not isinstance(output, Ref):
        raise GraphError("the output does not depend on the input")
    return output


def _call(node: torch.fx.Node, values: dict[torch.fx.Node, Any], builder: Builder) -> Any:
    def look(v: Any) -> Any:
        return values[v] if isinstance(v, torch.fx.Node) else v

    args: Any = torch.fx.map_arg(node.args, look)
    attributes: Any = torch.fx.map_arg(node.kwargs, look)
    place = _place(node)
    target: Any = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    if getattr(target, "_schema", None) and target._schema.name.split("::")[-1] in _CHECKS:
        return None
    if not any(is_variable(v) for v in leaves((args, attributes))):
        return target(*args, **attributes)
    name = (
        target.__name__ if not hasattr(target, "_schema") else target._schema.name.split("::")[-1]
    )
    if args and isinstance(args[0], Layered):
        return _layer(name, args, place)
    build = known("aten").get(name)
    if build is None:
        raise UnsupportedOperatorError(name, place)
    with readable(name, place):
        return built(build, Call(name, args, attributes, builder, place))


def _layer(name: str, args: Any, place: str) -> Any:
    """One layer's value, or all of them."""
    along = args[1] if len(args) > 1 else 0
    if along == 0 and name == "unbind":
        return list(args[0])
    if along == 0 and name == "select":
        return args[0][args[2]]
    if along == 0 and name == "squeeze" and len(args[0]) == 1:
        return args[0][0]
    raise GraphError(
        f"{name!r} at {place!r}: the states of all layers come before the batch; take one of them, "
        "for example the last: h_n[-1]"
    )


def _place(node: torch.fx.Node) -> str:
    """The innermost module a node came from, with the node's own name."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{path}.{node.name}" if path else node.name
