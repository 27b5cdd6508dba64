"""Recurrent layers, unrolled over the steps of their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from holdfast.graphs.builder import Call, Layered, Ref, aten
from holdfast.graphs.operators.add import add
from holdfast.graphs.operators.concat import concat
from holdfast.graphs.operators.linear import Linear
from holdfast.graphs.operators.product import multiply
from holdfast.graphs.operators.relu import ReLU
from holdfast.graphs.operators.reshape import reshape
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.sigmoid import Sigmoid, Tanh

State = Any  # Ref (h,) or a constant (1, h)


@final
@dataclass(frozen=True, slots=True)
class Cell:
    """The weights of one layer in one direction.

    Attributes:
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        w_in, w_state: ``(gates h, in)`` and ``(gates h, h)``.
        b_in, b_state: ``(gates h,)`` each.
    """

    kind: str
    w_in: Tensor
    w_state: Tensor
    b_in: Tensor
    b_state: Tensor

    def read(self, call: Call, x: Ref) -> Ref:
        """What the gates get from inputs ``(.., in)``."""
        return call.emit(Linear(self.w_in, self.b_in), x)

    def step(self, call: Call, read: Ref, state: list[State]) -> list[State]:
        """The next state, ``[h]`` or ``[h, c]``, after ``read (gates h,)``."""
        h = state[0]
        if isinstance(h, Ref):
            back: State = call.emit(Linear(self.w_state, self.b_state), h)
        else:
            back = h.to(self.w_state) @ self.w_state.T + self.b_state
        if self.kind == "gru":
            return [self._gru(call, read, back, h)]
        total = _plus(call, read, back)
        if self.kind == "lstm":
            return self._lstm(call, total, state[1])
        return [call.emit(Tanh() if self.kind == "rnn_tanh" else ReLU(), total)]

    def _lstm(self, call: Call, total: Ref, c: State) -> list[State]:
        i, f, g, o = _parts(call, total, 4)
        i, f, o = (call.emit(Sigmoid(), z) for z in (i, f, o))
        kept = multiply(call, f, c) if isinstance(c, Ref) or bool((c != 0).any()) else None
        new = multiply(call, i, call.emit(Tanh(), g))
        c = new if kept is None else add(call, kept, new)
        return [multiply(call, o, call.emit(Tanh(), c)), c]

    def _gru(self, call: Call, read: Ref, back: State, h: State) -> Ref:
        r, z, n = _parts(call, read, 3)
        rb, zb, nb = _parts(call, back, 3) if isinstance(back, Ref) else back.chunk(3, -1)
        r, z = (call.emit(Sigmoid(), _plus(call, a, b)) for a, b in ((r, rb), (z, zb)))
        n = call.emit(Tanh(), add(call, n, multiply(call, r, nb)))
        # h' = n + z (h - n)
        gap = add(call, h, n, -1) if isinstance(h, Ref) else scale(call, n, -1.0, h)
        return add(call, n, multiply(call, z, gap))


def _plus(call: Call, x: Ref, y: State) -> Ref:
    return add(call, x, y) if isinstance(y, Ref) else scale(call, x, 1.0, y)


def _parts(call: Call, ref: Ref, count: int) -> list[Ref]:
    size = ref.shape[-1] // count
    return [call.move(lambda p, i=i: p[..., i * size : (i + 1) * size], ref) for i in range(count)]


def _cell(kind: str, weights: Sequence[Tensor | None]) -> Cell:
    w_in, w_state = weights[0], weights[1]
    assert w_in is not None
    assert w_state is not None
    given = [*weights[2:], None, None][:2]
    bias = [w_in.new_zeros(len(w_in)) if b is None else b for b in given]
    return Cell(kind, w_in, w_state, *bias)


@aten("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def build_cell(call: Call) -> list[Ref] | Ref:
    """One step."""
    kind = call.name.removesuffix("_cell")
    cell = _cell(kind, [call.constant(i) for i in range(2, min(6, len(call.args)))])
    state = list(call.args[1]) if kind == "lstm" else [call.args[1]]
    new = cell.step(call, cell.read(call, call.ref()), state)
    return new if kind == "lstm" else new[0]


@aten("lstm", "gru", "rnn_tanh", "rnn_relu")
def build_layers(call: Call) -> list[Ref | Layered]:
    """All layers, both directions: the outputs of every step and the last states."""
    layers = _checked(call)
    given = list(call.args[1]) if call.name == "lstm" else [call.args[1]]
    x, ends = call.ref(), []
    for cells in layers:
        starts = [[_start(call, s, len(ends) + i) for s in given] for i in range(len(cells))]
        found = [
            _unrolled(call, cell, x, start, reverse=i == 1)
            for i, (cell, start) in enumerate(zip(cells, starts, strict=True))
        ]
        outs = [out for out, _ in found]
        ends += [end for _, end in found]
        x = outs[0] if len(outs) == 1 else concat(call, outs, 2)
    return [x, *(Layered([end[i] for end in ends]) for i in range(len(given)))]


def _checked(call: Call) -> list[list[Cell]]:
    """The cells of every layer, one for each direction."""
    weights = call.args[2]
    if not isinstance(weights, (list, tuple)):
        raise call.error("packed sequences are not supported; give padded ones")
    has_biases, layers, both, batch_first = (call.args[i] for i in (3, 4, 7, 8))
    if not batch_first:
        raise call.error("steps come before the batch; use batch_first=True")
    directions, per_cell = 1 + bool(both), 4 if has_biases else 2
    if len(weights) != layers * directions * per_cell:
        raise call.error("projections of the state (proj_size) are not supported")
    cells = [_cell(call.name, weights[i : i + per_cell]) for i in range(0, len(weights), per_cell)]
    return [cells[i : i + directions] for i in range(0, len(cells), directions)]


def _start(call: Call, state: State, i: int) -> State:
    """The first state of one cell, ``(1, h)``; all are ``(cells, 1, h)``."""
    if isinstance(state, Ref):
        raise call.error("a first state that depends on the input is not supported")
    return state[i]


def _unrolled(
    call: Call, cell: Cell, x: Ref, state: list[State], reverse: bool
) -> tuple[Ref, list[State]]:
    reads, steps = cell.read(call, x), range(x.shape[0])
    found: list[Ref] = []
    for t in reversed(steps) if reverse else steps:
        state = cell.step(call, call.move(lambda p, t=t: p[:, t], reads), state)
        found.append(state[0])
    if reverse:
        found.reverse()
    return _stacked(call, found), state


def _stacked(call: Call, parts: list[Ref]) -> Ref:
    grown = [reshape(call, part, (1, *part.shape)) for part in parts]
    return grown[0] if len(grown) == 1 else concat(call, grown, 1)
