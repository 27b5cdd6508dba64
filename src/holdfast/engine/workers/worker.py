"""The worker's side: a process that holds the model, fills its slots, and reports.

A thread takes messages in at any time, so that neither side ever waits for the other to listen, and
ends the process at once when the run is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from holdfast.engine.jobs import Ended
from holdfast.engine.slots import Rules, Slots
from holdfast.engine.tuning import applied
from holdfast.engine.workers.wire import Begin, Chunk, Done, Failed, Ready, Setup, send, unpack
from holdfast.errors import HoldfastError
from holdfast.model import Model
from holdfast.rows import take


def main(descriptor: int) -> None:
    """Serve the run at the other end of a socket until it closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run hears Ctrl-C and decides
    connection = Connection(descriptor)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    try:
        model = _opened(connection, unpack(messages.get()))
        if model is not None:
            _Serving(model, connection, messages).run()
    except BaseException as error:
        _fail(connection, error)


def _listen(connection: Connection, messages: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            messages.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # the run is over, or was killed


def _fail(connection: Connection, error: BaseException, is_setup: bool = False) -> None:
    text = "".join(traceback.format_exception(error))
    try:
        own = error if isinstance(error, HoldfastError) else None
        send(connection, Failed(own, text, is_setup))
    except Exception:
        send(connection, Failed(None, text, is_setup))


def _opened(connection: Connection, setup: Setup) -> Model | None:
    """The model, after its answer to the probe was sent; None where there is none."""
    torch.manual_seed(setup.seed)
    try:
        model = loaded(setup)
        with applied(model.tuning), model.session():
            answer = model.answer([setup.probe])[0]
        send(connection, Ready(answer))
    except Exception as error:
        _fail(connection, error, is_setup=True)
        return None
    return model


def loaded(setup: Setup) -> Model:
    """The model that a worker is told to run, on its device."""
    model = None
    device = torch.device(setup.device)
    if setup.payload is not None:
        try:
            model = unpack(setup.payload)
        except Exception:
            if not setup.source:
                raise
    if model is None:
        from holdfast.loading import load_model

        model = Model(load_model(setup.source, setup.weights, setup.device).f)
    assume(model, setup.state)
    for module in model.modules:
        if any(p.device != device for p in (*module.parameters(), *module.buffers())):
            module.to(device)
    model.device = device
    return model


def assume(model: Model, state: dict[str, Any]) -> None:
    """What the run knows of the model."""
    for name, value in state.items():
        setattr(model, name, value)


class _Serving:
    """Slots that are filled by messages."""

    def __init__(
        self, model: Model, connection: Connection, messages: queue.SimpleQueue[bytes]
    ) -> None:
        self.model, self.connection, self.messages = model, connection, messages
        self.number, self.slots = 0, Slots(model, 1, Rules())
        self.waiting: deque[Chunk] = deque()
        self.told = (model.passes.forward, model.passes.backward)

    def run(self) -> None:
        """Until the run closes the connection."""
        with applied(self.model.tuning), self.model.session():
            while True:
                self._hear()
                self._fill()
                if not self.slots.is_empty:
                    self._report(self.slots.tick())

    def _hear(self) -> None:
        """Take in what has come; wait where there is nothing to do."""
        while not self.messages.empty() or (self.slots.is_empty and not self.waiting):
            message = unpack(self.messages.get(), self.model.device)
            if isinstance(message, Begin):
                self.number, self.waiting = message.number, deque()
                self.slots = Slots(self.model, message.size, message.rules)
                assume(self.model, message.state)
            else:
                self.waiting.append(message)

    def _fill(self) -> None:
        """As many of the waiting jobs as there are free slots."""
        while self.waiting and self.slots.free > 0:
            chunk = self.waiting.popleft()
            now, later = divided(chunk, self.slots.free)
            self.slots.add(now.attack, now.jobs, now.problem, now.goal, now.route)
            if later is not None:
                self.waiting.appendleft(later)

    def _report(self, ended: list[Ended]) -> None:
        if not ended:
            return
        passes, (forward, backward) = self.model.passes, self.told
        done = Done(self.number, ended, passes.forward - forward, passes.backward - backward)
        self.told = (passes.forward, passes.backward)
        send(self.connection, done)


def divided(chunk: Chunk, n: int) -> tuple[Chunk, Chunk | None]:
    """The first ``n`` jobs of a chunk, and the rest."""
    if len(chunk.jobs) <= n:
        return chunk, None
    return part(chunk, range(n)), part(chunk, range(n, len(chunk.jobs)))


def part(chunk: Chunk, rows: Sequence[int]) -> Chunk:
    """Some jobs of a chunk."""
    index = torch.as_tensor(rows, device=chunk.goal.device)
    jobs = [chunk.jobs[i] for i in rows]
    problem = take(chunk.problem, index)
    return replace(chunk, jobs=jobs, problem=problem, goal=chunk.goal[index])
