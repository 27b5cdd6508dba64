"""Counterexamples count only when the deployed network shows them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.graphs.errors import GraphError
from holdfast.graphs.graph import Graph
from holdfast.verifiers.problem import Counterexample, FloatArray, Property

Runtime = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Confirm = Callable[[int, FloatArray], Counterexample | None]
"""From a clause and an input ``(p,)`` to a counterexample that the deployed network shows."""


def onnx_runtime(path: str | os.PathLike[str]) -> Runtime:
    """Runs flat float32 inputs ``(p,)`` through onnxruntime; the session starts at first use."""
    session = None

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal session
        if session is None:
            import onnxruntime

            session = onnxruntime.InferenceSession(
                os.fspath(path), providers=["CPUExecutionProvider"]
            )
        names = {o.name for o in session.get_overridable_initializers()}
        info = next(i for i in session.get_inputs() if i.name not in names)
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in info.shape]
        return np.asarray(session.run(None, {info.name: x.reshape(shape)})[0], np.float32).ravel()

    return run


def values_runtime(
    source: str | os.PathLike[str], hidden: Sequence[str] = ()
) -> Callable[[Sequence[NDArray[np.float32]]], list[NDArray[np.float32]]]:
    """Runs a network of several inputs through onnxruntime; the session starts at first use.

    Args:
        source: The file.
        hidden: Names of inner values to return before the outputs.

    Returns:
        A function from inputs of their declared shapes, in the order of the model, to flat values.
    """
    session: Any = None

    def run(xs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        nonlocal session
        session = session or _session(source, hidden)
        constants = {o.name for o in session.get_overridable_initializers()}
        infos = [i for i in session.get_inputs() if i.name not in constants]
        feeds = {info.name: _feed(source, info, x) for info, x in zip(infos, xs, strict=True)}
        names = [o.name for o in session.get_outputs()]
        added = sum(name not in names[: len(names) - len(hidden)] for name in hidden)
        outputs = names[: len(names) - added]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        return [np.asarray(found[name], np.float32).ravel() for name in (*hidden, *outputs)]

    return run


def _session(source: str | os.PathLike[str], hidden: Sequence[str]) -> Any:
    """A session that can also be asked for inner values."""
    import onnx
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    if not hidden:
        return onnxruntime.InferenceSession(os.fspath(source), providers=providers)
    model = onnx.load(os.fspath(source))
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=h) for h in hidden if h not in known)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)


def _feed(source: str | os.PathLike[str], info: Any, x: NDArray[np.float32]) -> NDArray[Any]:
    kind = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(info.type)
    if kind is None:
        raise GraphError(
            f"input {info.name!r} of {os.fspath(source)} is {info.type}; counterexamples can be "
            "replayed for float and double"
        )
    given = x.shape if x.ndim == len(info.shape) else [1] * len(info.shape)
    shape = [
        d if isinstance(d, int) and d > 0 else g for d, g in zip(info.shape, given, strict=True)
    ]
    return x.astype(kind).reshape(shape)


def graph_runtime(graph: Graph) -> Runtime:
    """Runs flat float32 inputs through a graph in float32."""
    single = graph.to(torch.float32)

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return single(torch.from_numpy(x).reshape(1, *graph.input_shape)).numpy().ravel()

    return run


def inside(x: FloatArray, lower: FloatArray, upper: FloatArray) -> tuple[NDArray[np.float32], int]:
    """The float32 point of the box nearest to ``x``, and how many inputs had to leave it.

    An input leaves the box only where the box holds no float32 value at all; it is then rounded
    to nearest.
    """
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low.astype(np.float64) < lower, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high.astype(np.float64) > upper, np.nextafter(high, np.float32(-np.inf)), high)
    empty = low > high
    point = np.minimum(np.maximum(x.astype(np.float32), low), high)
    point = np.where(empty, ((lower + upper) / 2).astype(np.float32), point)
    return point.astype(np.float32), int(empty.sum())


def replay(runtime: Runtime, prop: Property, clause: int, x: FloatArray) -> Counterexample | None:
    """The counterexample at ``x``, or None where the deployed network shows no violation."""
    target = prop.clauses[clause]
    point, rounded = inside(x, target.lower, target.upper)
    y = runtime(point)
    if not target.is_violated(point.astype(np.float64), y.astype(np.float64)):
        return None
    return Counterexample(point, y, clause, rounded)
