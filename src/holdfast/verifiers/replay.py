"""Counterexamples count only when the deployed network shows them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.graphs.errors import GraphError
from holdfast.graphs.graph import Graph
from holdfast.verifiers.problem import Counterexample, FloatArray, Property, Values

Kind = type[np.floating[Any]]
KINDS: dict[str, Kind] = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
"""Types of inputs that can be replayed, as onnxruntime calls them."""
Confirm = Callable[[int, FloatArray], Counterexample | None]
"""From a clause and an input ``(p,)`` to a counterexample that the deployed network shows."""


class Runtime(Protocol):
    """A deployed network of one input and one output."""

    @property
    def kind(self) -> Kind:
        """The type of its inputs."""
        ...

    def __call__(self, x: NDArray[np.float32]) -> Values:
        """Runs flat inputs ``(p,)``, given in float32."""
        ...


@final
@dataclass(frozen=True)
class OnnxRuntime:
    """Runs a file through onnxruntime; the session starts at first use."""

    path: str | os.PathLike[str]

    @cached_property
    def _session(self) -> Any:
        return _session(self.path, ())

    @cached_property
    def _input(self) -> Any:
        names = {o.name for o in self._session.get_overridable_initializers()}
        return next(i for i in self._session.get_inputs() if i.name not in names)

    @property
    def kind(self) -> Kind:
        """Of the file's input.

        Raises:
            GraphError: a type that cannot be replayed.
        """
        return _kind(self.path, self._input)

    def __call__(self, x: NDArray[np.float32]) -> Values:
        """The first output."""
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in self._input.shape]
        feed = {self._input.name: x.astype(self.kind).reshape(shape)}
        return _flat(self._session.run(None, feed)[0])


def values_runtime(
    source: str | os.PathLike[str], hidden: Sequence[str] = ()
) -> Callable[[Sequence[NDArray[np.float32]]], list[Values]]:
    """Runs a network of several inputs through onnxruntime; the session starts at first use.

    Args:
        source: The file.
        hidden: Names of inner values to return before the outputs.

    Returns:
        A function from inputs of their declared shapes, in the order of the model, to flat values.
    """
    session: Any = None

    def run(xs: Sequence[NDArray[np.float32]]) -> list[Values]:
        nonlocal session
        session = session or _session(source, hidden)
        constants = {o.name for o in session.get_overridable_initializers()}
        infos = [i for i in session.get_inputs() if i.name not in constants]
        feeds = {info.name: _feed(source, info, x) for info, x in zip(infos, xs, strict=True)}
        names = [o.name for o in session.get_outputs()]
        added = sum(name not in names[: len(names) - len(hidden)] for name in hidden)
        outputs = names[: len(names) - added]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        return [_flat(found[name]) for name in (*hidden, *outputs)]

    return run


def _session(source: str | os.PathLike[str], hidden: Sequence[str]) -> Any:
    """A session that can also be asked for inner values."""
    import onnx
    import onnxruntime

    given: Any = os.fspath(source)
    if hidden:
        model = onnx.load(given)
        known = {o.name for o in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=h) for h in hidden if h not in known)
        given = model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for every status
        raise GraphError(
            f"onnxruntime, which replays every counterexample, cannot run {os.fspath(source)}: "
            f"{error}"
        ) from error


def _kind(source: str | os.PathLike[str], info: Any) -> Kind:
    if info.type not in KINDS:
        raise GraphError(
            f"input {info.name!r} of {os.fspath(source)} is {info.type}; counterexamples can be "
            f"replayed for {', '.join(KINDS)}"
        )
    return KINDS[info.type]


def _flat(values: Any) -> Values:
    """Outputs ``(m,)`` as float32; those of a float64 network stay as they are."""
    found = np.asarray(values)
    return found.astype(np.float64 if found.dtype == np.float64 else np.float32).ravel()


def _feed(source: str | os.PathLike[str], info: Any, x: NDArray[np.float32]) -> NDArray[Any]:
    given = x.shape if x.ndim == len(info.shape) else [1] * len(info.shape)
    shape = [
        d if isinstance(d, int) and d > 0 else g for d, g in zip(info.shape, given, strict=True)
    ]
    return x.astype(_kind(source, info)).reshape(shape)


@final
@dataclass(frozen=True, slots=True)
class GraphRuntime:
    """Runs a graph in float32."""

    graph: Graph

    @property
    def kind(self) -> Kind:
        """Always float32."""
        return np.float32

    def __call__(self, x: NDArray[np.float32]) -> Values:
        """The output."""
        with torch.no_grad():
            y = self.graph(torch.from_numpy(x).reshape(1, *self.graph.input_shape))
            return y.numpy().ravel()


def graph_runtime(graph: Graph) -> GraphRuntime:
    """Runs flat float32 inputs through a graph in float32."""
    return GraphRuntime(graph.to(torch.float32))


def inside(
    x: FloatArray, lower: FloatArray, upper: FloatArray, kind: Kind = np.float32
) -> tuple[NDArray[np.float32], int]:
    """The point of the box nearest to ``x``, and how many inputs had to leave the box.

    An input leaves the box only where the box holds no value of its kind at all; it is then rounded
    to nearest.

    Args:
        x: Wanted inputs ``(p,)``.
        lower: Least inputs.
        upper: Greatest inputs.
        kind: What the network takes; no finer than float32.
    """
    kind = np.float16 if kind is np.float16 else np.float32
    with np.errstate(over="ignore"):
        low, high = lower.astype(kind), upper.astype(kind)
        low = np.where(low.astype(np.float64) < lower, np.nextafter(low, kind(np.inf)), low)
        high = np.where(high.astype(np.float64) > upper, np.nextafter(high, kind(-np.inf)), high)
        empty = low > high
        point = np.minimum(np.maximum(x.astype(kind), low), high)
        point = np.where(empty, ((lower + upper) / 2).astype(kind), point)
    return point.astype(np.float32), int(empty.sum())


def replay(runtime: Runtime, prop: Property, clause: int, x: FloatArray) -> Counterexample | None:
    """The counterexample at ``x``, or None where the deployed network shows no violation."""
    target = prop.clauses[clause]
    point, rounded = inside(x, target.lower, target.upper, runtime.kind)
    y = runtime(point)
    if not target.is_violated(point.astype(np.float64), y.astype(np.float64)):
        return None
    return Counterexample(point, y, clause, rounded)
