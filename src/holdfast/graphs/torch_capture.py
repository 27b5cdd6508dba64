"""Captures a ``torch.nn.Module`` through ``torch.export``."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from holdfast.graphs.builder import Builder, Call, Ref, known
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
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # export warns of its own internals
            program = torch.export.export(module, (example[:1].detach(),), strict=False)
            return program if _is_readable(program) else program.run_decompositions({})
    except Exception as error:
        raise GraphError(f"torch.export cannot capture {type(module).__name__}: {error}") from error
    finally:
        for m in was_training:
            m.training = True


def _is_readable(program: torch.export.ExportedProgram) -> bool:
    """Whether every operator is known and none writes to its arguments.

    Then decomposing, which also removes writes, and takes most of the time, can be left out.
    """
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    schemas = [t._schema for t in targets if hasattr(t, "_schema")]  # type: ignore[union-attr]
    names = {s.name.split("::")[-1] for s in schemas}
    expected = known("aten").keys() | _CREATORS | _CHECKS
    return not any(s.is_mutable for s in schemas) and names <= expected


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
    if not any(isinstance(v, Ref) for v in _leaves((args, attributes))):
        return target(*args, **attributes)
    name = (
        target.__name__ if not hasattr(target, "_schema") else target._schema.name.split("::")[-1]
    )
    build = known("aten").get(name)
    if build is None:
        raise UnsupportedOperatorError(name, place)
    return build(Call(name, args, attributes, builder, place))


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for v in tree.values() for leaf in _leaves(v)]
    if isinstance(tree, (list, tuple)):
        return [leaf for v in tree for leaf in _leaves(v)]
    return [tree]


def _place(node: torch.fx.Node) -> str:
    """The innermost module a node came from, with the node's own name."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{path}.{node.name}" if path else node.name
