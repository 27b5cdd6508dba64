"""How the model runs fastest here: threads, rows of a call and memory format, by measuring.

Torch takes as many threads as there are cores. On small models, and on a machine that has other
work, that can be a hundred times slower than one thread. Rules of thumb do not see this; a few
passes do. One thread is what the others are measured against, because nothing can go wrong with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from holdfast._running import Precision, Tuning
from holdfast.attacks._losses import cross_entropy
from holdfast.attacks.base import Objective, Query
from holdfast.data import Data
from holdfast.engine.journal import peek
from holdfast.engine.scan import inside
from holdfast.errors import HoldfastError, PlanError
from holdfast.model import Model
from holdfast.plan import Plan
from holdfast.threat import Access

_MOST_SECONDS = 2.0  # of all measurements; one that has begun is finished
_SHARE = 0.1  # of the run's own time that measuring may take
_FEWEST_JOB_PASSES = 20  # of a sample in an audit, to know how long one will take
_SHORT_RUN = 1.0  # seconds: nothing to win
_FIRST_ROWS = 8
_GROWTH = 4  # of calls, from one measurement to the next
_WORTH_GROWING = 1.25  # how much cheaper a row became when larger calls still are measured
_SECONDS = 0.03  # of one measurement, at least
_FEWEST_PASSES, _MOST_PASSES = 2, 30
_WAKING = 20.0  # times longer than one thread on a single row: the cores are taken
_ROOM = 5.0  # times a call of one row: so long may one of ``_FIRST_ROWS`` take that has room
_GAIN = 1.1  # how much faster a way must be to be taken
_GAIN_OF_THREADS = 1.25  # more: the machine may get busier


@contextmanager
def applied(tuning: Tuning) -> Iterator[None]:
    """Torch with these threads inside; as before after."""
    before = torch.get_num_threads()
    if tuning.threads is not None and tuning.threads != before:
        torch.set_num_threads(tuning.threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def settled(plan: Plan, model: Model, data: Data, directory: Path) -> Iterator[None]:
    """``model`` runs inside as it did when the run began, or as it runs fastest if this begins it.

    A run that goes on keeps its way, so that its last bits do not change in the middle.
    """
    old = model.tuning
    new = _recorded(directory)
    if new is None:
        _check_precision(plan, model)
        new = replace(_measured(plan, model, data), is_compiled=plan.compiled)
        if plan.compiled:
            _check_compiled(model, new, data)
    elif plan.threads is not None:
        new = replace(new, threads=plan.threads)
    if new != old:
        model.checked.clear()  # found under another rounding
    try:
        model.tuning = new
        with applied(new):
            yield
    finally:
        model.tuning = old


def _recorded(directory: Path) -> Tuning | None:
    header = peek(directory)
    if header is None:
        return None
    known = {field.name for field in fields(Tuning)}
    return Tuning(**{key: value for key, value in header.tuning.items() if key in known})


def _check_precision(plan: Plan, model: Model) -> None:
    if plan.precision == "tf32" and model.device.type != "cuda":
        raise PlanError(
            f"TF32 is a precision of NVIDIA's GPUs, and the model runs on {model.device}. "
            "Use --precision bf16 or float32."
        )


def _check_compiled(model: Model, tuning: Tuning, data: Data) -> None:
    """Compile, so that what cannot be compiled is told before anything runs."""
    if not isinstance(model.f, torch.nn.Module):
        raise PlanError(
            f"Only a torch.nn.Module can be compiled, and {model.description} is none. Leave out "
            "--compiled (compiled=True)."
        )
    x = _few(model, data)
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    graded = Query(x, Objective(cross_entropy, (y, torch.full_like(y, -1))))
    old, model.tuning = model.tuning, tuning
    try:
        if model.n_classes:  # else the checks that follow say what is wrong with the model
            model.search([graded if model.access is Access.GRADIENTS else Query(x)])
    except HoldfastError as error:
        raise PlanError(
            f"The model cannot be compiled here: {str(error).splitlines()[0]} Leave out "
            "--compiled (compiled=True)."
        ) from error
    finally:
        model.tuning = old


def _few(model: Model, data: Data) -> Tensor:
    """Some clean inputs, on the model's device."""
    x = data.fetch(range(min(_FIRST_ROWS, len(data))))[0]
    return inside(x, model.domain).to(model.device)


def _measured(plan: Plan, model: Model, data: Data) -> Tuning:
    threads = 1 if plan.workers > 1 and plan.threads is None else plan.threads
    x = _few(model, data)
    try:
        model.recognise(x)
    except HoldfastError:
        # the checks that follow say what is wrong with the model
        return Tuning(threads=threads, precision=plan.precision)
    return tune(model, x, len(data), threads, plan.precision)


def tune(
    model: Model,
    x: Tensor,
    n: int,
    threads: int | None = None,
    precision: Precision = "float32",
) -> Tuning:
    """The fastest way to run forward and backward passes of ``model`` on inputs like ``x``.

    Args:
        model: Inside a session, its head recognised.
        x: Some clean inputs ``(m, *shape)`` on its device.
        n: How many samples the run has: short runs are not worth measuring.
        threads: Threads that the user has chosen; None: choose.
        precision: Of the search.

    Returns:
        The choice; torch's threads and ``model.tuning`` are as before.
    """
    old, before = model.tuning, torch.get_num_threads()
    try:
        return _Search(model, x, n, precision).choose(threads, before)
    except (HoldfastError, RuntimeError):
        return Tuning(threads=threads, precision=precision)
    finally:
        model.tuning = old
        torch.set_num_threads(before)


class _Search:
    """Measurements of one model, until the time for them is over."""

    def __init__(self, model: Model, x: Tensor, n: int, precision: Precision) -> None:
        self.model, self.n, self.began = model, n, time.perf_counter()
        self.precision: Precision = precision
        self.limit = _MOST_SECONDS
        model.tuning = Tuning()
        self.rows = min(model.call_rows(tuple(x.shape[1:])), max(n, 1))
        self.x = x.repeat(-(-self.rows // len(x)), *(1,) * (x.ndim - 1))[: self.rows]

    def choose(self, threads: int | None, most: int) -> Tuning:
        """Threads are compared on the clock on the wall, the rest by the time of the processor."""
        is_cpu = self.model.device.type == "cpu"
        best = Tuning(threads=threads or (1 if is_cpu else None), precision=self.precision)
        whole, self.x = self.x, self.x[:_FIRST_ROWS]
        per_row = self._cost(best, 3)
        expected = per_row * self.n * _FEWEST_JOB_PASSES
        self.limit = min(_MOST_SECONDS, _SHARE * expected)
        if expected < _SHORT_RUN:
            return best
        few, self.x = self.x, self.x[:1]
        best = replace(best, has_room=per_row * len(few) < _ROOM * self._cost(best, 2))
        self.x = few
        if self._has_time_for(_GROWTH * _FIRST_ROWS, per_row):  # else a large model
            self.x = whole
            best = self._rows(best, per_row)
        best = self._threads(best, most) if threads is None else best
        return self._format(best)

    def _rows(self, best: Tuning, cost: float) -> Tuning:
        """Calls grow while that makes a row a good deal cheaper: smaller ones stay in the caches.

        ``cost`` is that of a row where calls have ``_FIRST_ROWS``.
        """
        rows, size = min(_GROWTH * _FIRST_ROWS, self.rows), _FIRST_ROWS
        while size < self.rows:
            size = min(_GROWTH * size, self.rows)
            if not self._has_time_for(size, cost):
                break
            new = self._cost(replace(best, rows=size))
            if new <= cost:
                rows = size
            if new * _WORTH_GROWING > cost:
                break
            cost = new
        return best if rows == self.rows else replace(best, rows=rows)

    def _format(self, best: Tuning) -> Tuning:
        if self.x.ndim != 4 or self.x.shape[1] == 1:
            return best
        other = replace(best, is_channels_last=True)
        try:
            cost = self._cost(best)
            is_faster = not self._is_late and self._cost(other) * _GAIN < cost
        except (HoldfastError, RuntimeError):
            return best  # a view of the network refuses the format
        return other if is_faster else best

    def _cost(self, tuning: Tuning, n: int = 0) -> float:
        """Seconds per row, the least of ``n`` passes, or of as many as say something."""
        self._use(tuning)
        run, clock = self._pass(tuning), self._clock(tuning)
        first = _seconds(run, clock, 1)  # kernels are chosen, memory is allocated
        least = min(_seconds(run, clock, 1) for _ in range(n or _passes(first)))
        return least / min(tuning.rows or len(self.x), len(self.x))

    def _threads(self, best: Tuning, most: int) -> Tuning:
        """All passes count, the slow ones too: those are what a busy machine does to threads."""
        if self.model.device.type != "cpu":
            return replace(best, threads=None)
        if _is_busy():
            return best
        one, many = (self._pass(replace(best, rows=rows)) for rows in (1, best.rows))
        self._use(best)
        least = _seconds(one, time.perf_counter, 1)
        n = _passes(_seconds(many, time.perf_counter, 1))
        limit = _seconds(many, time.perf_counter, n) / _GAIN_OF_THREADS
        for threads in sorted({most, most // 2} - {0, 1}, reverse=True):
            other = replace(best, threads=threads)
            self._use(other)
            if self._is_late or _seconds(one, time.perf_counter, 1) > _WAKING * least:
                break  # even waking the threads up costs more than the work
            if self._is_within(many, n, limit):
                return other
        return best

    def _is_within(self, run: Callable[[], object], n: int, limit: float) -> bool:
        """Whether ``n`` passes take no longer than ``limit``; given up as soon as they do."""
        began = time.perf_counter()
        return all((run(), time.perf_counter() - began <= limit)[1] for _ in range(n))

    def _use(self, tuning: Tuning) -> None:
        self.model.tuning = tuning
        if tuning.threads is not None:
            torch.set_num_threads(tuning.threads)

    def _clock(self, tuning: Tuning) -> Callable[[], float]:
        is_alone = tuning.threads == 1 and self.model.device.type == "cpu"
        return time.process_time if is_alone else time.perf_counter

    def _pass(self, tuning: Tuning) -> Callable[[], object]:
        """One call of the model, with gradients where there are any."""
        x = self.x[: tuning.rows or len(self.x)]
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        is_graded = bool(self.model.modules) and not self.model.takes_arrays
        objective = Objective(cross_entropy, (y, torch.full_like(y, -1))) if is_graded else None

        def run() -> object:
            answers = self.model.search([Query(x, objective)])
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            return answers

        return run

    @property
    def _is_late(self) -> bool:
        return not self._has_time_for(0, 0.0)

    def _has_time_for(self, rows: int, cost: float) -> bool:
        """Whether a measurement of calls with so many ``rows`` of that ``cost`` ends in time."""
        seconds = (1 + _FEWEST_PASSES) * rows * cost
        return time.perf_counter() - self.began + seconds <= self.limit


def _is_busy() -> bool:
    """Whether the machine has more work than cores already."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def _passes(seconds: float) -> int:
    return min(_MOST_PASSES, max(_FEWEST_PASSES, round(_SECONDS / max(seconds, 1e-6))))


def _seconds(run: Callable[[], object], clock: Callable[[], float], n: int) -> float:
    began = clock()
    for _ in range(n):
        run()
    return clock() - began
