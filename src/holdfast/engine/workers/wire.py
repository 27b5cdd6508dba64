"""What goes between a run and its workers: bytes made by pickle, tensors as arrays.

Tensors travel as plain arrays on the CPU: no shared memory to leak when a process is killed, and a
row of a large tensor does not take the whole one along. What plain pickle cannot name (classes of a
script or notebook, lambdas, closures) goes by value, through cloudpickle.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from holdfast.attacks.base import Answer, Attack, Problem, Query, Route
from holdfast.engine.jobs import Ended, Job
from holdfast.engine.slots import Rules


@dataclass(frozen=True)
class Setup:
    """How a worker gets its model.

    Attributes:
        payload: The :class:`~holdfast.Model`, pickled; None where it cannot be.
        source: Where to load the network from otherwise, with its ``weights``; empty: nowhere.
        state: The Model's attributes beside the network.
        device: Where this worker runs.
        seed: Of the worker's own random state, for models that draw random numbers.
        probe: A question whose answer the run knows.
    """

    payload: bytes | None
    source: str
    weights: str | None
    state: dict[str, Any]
    device: str
    seed: int
    probe: Query


@dataclass(frozen=True)
class Begin:
    """A new set of jobs begins; those of earlier numbers are dropped."""

    number: int
    size: int
    rules: Rules
    state: dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Jobs of one stage, as :meth:`holdfast.engine.slots.Slots.add` takes them."""

    attack: Attack
    jobs: list[Job]
    problem: Problem
    goal: Tensor
    route: Route | None = None


@dataclass(frozen=True)
class Ready:
    """The worker has its model, and this is its answer to the probe."""

    answer: Answer


@dataclass(frozen=True)
class Done:
    """Jobs that ended, and the passes since the last report."""

    number: int
    ended: list[Ended]
    forward: int
    backward: int


@dataclass(frozen=True)
class Failed:
    """The worker raised: the error itself, where it can be sent, and its text."""

    error: BaseException | None
    text: str
    is_setup: bool = False


_PLAIN = {
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and not obj.requires_grad and obj.dtype in _PLAIN:
            return torch.tensor, (obj.numpy(force=True),)
        return super().reducer_override(obj)


def pack(message: Any) -> bytes:
    """A message as bytes."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device | None = None) -> Any:
    """The message of some bytes, its tensors on ``device``."""
    with torch.device(device or "cpu"):
        return pickle.loads(data)


def send(connection: Connection, message: Any) -> None:
    """Send a message; blocks until the other side has taken it."""
    connection.send_bytes(pack(message))
