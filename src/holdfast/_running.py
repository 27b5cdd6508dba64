"""One call of the network: its rows, its pieces, its gradients, and what it is run with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from holdfast.attacks.base import Answer, Objective, Query

Precision = Literal["float32", "tf32", "bf16"]
COMPILED_ROUNDING = 2**-18  # of fused kernels against others, as a share of the largest logit
ROUNDING: dict[str, float] = {"float32": 0.0, "tf32": 2**-11, "bf16": 2**-8}
"""Of one operation in the search, relative; float32 needs no allowance, its answers are final."""


@dataclass(slots=True)
class Passes:
    """Passes of single samples through the network, counted as they happen."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True, slots=True)
class RowBlock:
    """How many rows a call may have so that a row's result does not depend on the others.

    Matrix kernels round differently for different numbers of rows. Where calls with any multiple of
    ``size`` rows agree bit for bit (measured by :mod:`holdfast.engine.preflight`), batches are
    padded to such a multiple; where they never do, ``is_fixed`` and every call has ``size`` rows.
    Where even an input's place within its block matters, ``is_filled``: a block is one input,
    repeated, and its first row counts.
    """

    size: int = 1
    is_fixed: bool = False
    is_filled: bool = False

    def place(self, x: Tensor) -> Tensor:
        """Inputs ``(n, ...)`` as the rows of a call."""
        if self.is_filled:
            return x.repeat_interleave(self.size, 0)
        missing = -len(x) % self.size
        if missing == 0 or len(x) == 0:
            return x
        return torch.cat([x, x[:1].expand(missing, *x.shape[1:])])

    def pick(self, rows: Tensor, n: int) -> Tensor:
        """The rows of a call that belong to its ``n`` inputs."""
        if self.is_filled:
            return rows[:: self.size]
        return rows if len(rows) == n else rows[:n]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the network runs fastest on this machine, as :mod:`holdfast.engine.tuning` measured it.

    It changes the rounding of the model at most, and a run keeps its own to the end.

    Attributes:
        threads: Threads of torch; None: as many as it has.
        is_channels_last: Images go in with their channels beside each other in memory.
        rows: Rows of a call at most; None: by the size of an input.
        precision: Of the search; verdicts are always given in float32.
        has_room: Whether a call of a few rows takes hardly longer than one of a single row.
        is_compiled: Whether the search runs compiled code; verdicts never do.
    """

    threads: int | None = None
    is_channels_last: bool = False
    rows: int | None = None
    precision: Precision = "float32"
    has_room: bool = True
    is_compiled: bool = False

    @property
    def rounding(self) -> float:
        """How far the search's logits may be from the judge's, as a share of the largest one."""
        return max(ROUNDING[self.precision], COMPILED_ROUNDING * self.is_compiled)

    @property
    def is_exact(self) -> bool:
        """Whether search and judge compute the same."""
        return self.precision == "float32" and not self.is_compiled


@contextmanager
def tf32(is_on: bool) -> Iterator[None]:
    """Matrix products and convolutions of CUDA round their factors to TF32 inside."""
    if not is_on:
        yield
        return
    matmul = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def compiling(is_on: bool) -> Iterator[None]:
    """Compiled code may run inside, and keeps what several gradients of one pass need."""
    if not is_on:
        yield
        return
    import torch._functorch.config as functorch

    keeping = {"donated_buffer": False} if hasattr(functorch, "donated_buffer") else {}
    with torch.compiler.set_stance("default"), functorch.patch(keeping):
        yield


def cut(query: Query, start: int, stop: int) -> Query:
    """Rows ``start`` to ``stop`` of a query."""
    if start == 0 and stop == len(query.points):
        return query
    objective = query.objective
    if objective is not None:
        rows = tuple(row[start:stop] for row in objective.rows)
        objective = Objective(objective.function, rows, objective.width)
    progress = None if query.progress is None else query.progress[start:stop]
    return Query(query.points[start:stop], objective, query.route, progress)


def loss_of(objective: Objective | None, logits: Tensor) -> Tensor:
    """The objective's values."""
    assert objective is not None
    return objective.function(logits, *objective.rows)


def gradients_of(losses: list[Tensor], x: Tensor, n_backward: int, block: RowBlock) -> list[Tensor]:
    """The gradients of every query's losses, shaped like them: one backward pass a column."""
    sizes = [len(loss) for loss in losses]
    columns = []
    for j in range(n_backward):
        parts = [loss if loss.ndim == 1 else loss[:, j] for loss in losses]
        whole = block.pick(_gradient(parts, x, j + 1 < n_backward), sum(sizes))
        columns.append(split(whole, sizes))
    return [
        columns[0][i] if loss.ndim == 1 else torch.stack([column[i] for column in columns], 1)
        for i, loss in enumerate(losses)
    ]


def _gradient(losses: Sequence[Tensor], x: Tensor, keeps_graph: bool) -> Tensor:
    """The gradient of the losses' sum; zeros where none of them depends on ``x``."""
    chosen = [loss for loss in losses if loss.requires_grad]
    if not chosen:
        return torch.zeros_like(x)
    ones = [torch.ones_like(loss) for loss in chosen]
    found = torch.autograd.grad(chosen, x, ones, retain_graph=keeps_graph, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found.detach().contiguous()


def split(rows: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """``rows`` in pieces; one that is whole stays as it is."""
    return (rows,) if len(sizes) == 1 else rows.split(list(sizes))


def bare(logits: Tensor) -> Answer:
    """An answer without gradients."""
    empty = logits.new_empty(0)
    return Answer(logits, empty, empty)


def joined(parts: list[Answer]) -> Answer:
    """The rows of several answers, in order."""
    if len(parts) == 1:
        return parts[0]
    return Answer(
        torch.cat([p.logits for p in parts]),
        torch.cat([p.losses for p in parts]),
        torch.cat([p.gradients for p in parts]),
    )


def mean_of(parts: Sequence[Answer]) -> Answer:
    """The average of answers to the same query."""
    return Answer(
        torch.stack([p.logits for p in parts]).mean(0),
        torch.stack([p.losses for p in parts]).mean(0),
        torch.stack([p.gradients for p in parts]).mean(0),
    )
