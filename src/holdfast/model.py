"""The model under audit, and the only thing that runs it.

Everything that Holdfast knows of a network goes through :class:`Model`: the input domain, the
normalisation, the shape of the head, which passes were paid, and that the user's module comes back
as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast._guard import guarded
from holdfast._heads import HEADS, Head, as_logits, recognised, unwrapped
from holdfast._running import (
    Passes,
    RowBlock,
    Tuning,
    bare,
    compiling,
    cut,
    gradients_of,
    joined,
    loss_of,
    mean_of,
    split,
    tf32,
)
from holdfast._wrapping import described, home_of, modules_of, normalisation, usable_device
from holdfast.attacks.base import Answer, Query
from holdfast.errors import HoldfastError, ModelCrash, ModelError
from holdfast.threat import Access, Domain, parse_access

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_CPU_CALL_ELEMENTS = 2**18  # input numbers per call that keep a CPU's caches and cores busy
_GPU_CALL_ELEMENTS = 2**24
_FEWEST_ROWS = 8


class Model:
    """A classifier with its input domain.

    Args:
        f: A module, or any callable from inputs ``(n, *shape)`` (tensors, or arrays if it cannot
            take tensors) to logits or probabilities ``(n, k)``, one logit or probability per sample
            ``(n,)`` or ``(n, 1)``, or integer labels ``(n,)``.
        domain: The box of valid inputs, as a :class:`Domain` or a pair.
        mean: Subtracted from the inputs before ``f`` sees them, one number or one per channel.
        std: What they are divided by after that.
        device: Where to run; None: where the module's weights are.
        access: What an attacker may see; None: as much as ``f`` gives.
        n_classes: Needed only for labels, where the largest label may not occur in the data.
        head: What the output is, as in :class:`Head`; None: recognised from clean outputs.
        batch_size: Inputs in flight; None: chosen by the size of an input.
        description: What reports call it.

    Raises:
        ModelError: where ``f`` cannot be called or the normalisation does not fit.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        *,
        domain: Domain | tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        device: str | torch.device | None = None,
        access: Access | str | None = None,
        n_classes: int | None = None,
        head: str | None = None,
        batch_size: int | None = None,
        description: str = "",
    ) -> None:
        if not callable(f):
            raise ModelError(
                f"{type(f).__name__} is no model. Give a torch.nn.Module or a function from "
                "inputs to logits. (A state dict holds weights only: load it into its module.)"
            )
        self.f = f
        self.modules = tuple(modules_of(f))
        self.domain = domain if isinstance(domain, Domain) else Domain(*domain)
        self.mean, self.std = normalisation(mean, std)
        home, self.dtype = home_of(self.modules)
        self.device = usable_device(device) if device is not None else home
        self.access = parse_access(access) if access is not None else Access.GRADIENTS
        self.head = Head(n_classes=n_classes or 0)
        if head is not None and head not in HEADS:
            raise ModelError(f"Unknown head {head!r}. Use one of: {', '.join(HEADS)}.")
        self._given_head = head
        if batch_size is not None and batch_size < 1:
            raise ModelError(f"batch_size is {batch_size}; give at least 1 input, or None.")
        self.batch_size = batch_size
        self.block = RowBlock()
        self.tuning = Tuning()
        self._is_halved = self._is_compiled = False
        self._compiled: Callable[..., Any] | None = None
        self.draws = 1
        self.takes_arrays = False
        self.has_gradients = True
        self.agrees_with_gradients = False  # until a check has seen it
        self.max_rows: int | None = None
        self.passes = Passes()
        self.checked: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self.description = description or described(f)

    @classmethod
    def wrap(cls, f: Model | Callable[..., Any], **options: Any) -> Model:
        """``f`` itself if it is a Model already, else a new one."""
        return f if isinstance(f, Model) else cls(f, **options)

    @property
    def is_random(self) -> bool:
        """Whether the same input twice gave different answers."""
        return self.draws > 1

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 until :meth:`recognise` has seen an output."""
        return self.head.n_classes

    def call_rows(self, shape: tuple[int, ...]) -> int:
        """Rows of one call for inputs of this shape: a power of two.

        The batch size counts the jobs in flight; it bounds the rows of a call only where inputs are
        so large that their number is a matter of memory, so that results do not depend on it.
        """
        size = max(1, int(np.prod(shape)))
        on_cpu = self.device.type == "cpu"
        elements, most = (_CPU_CALL_ELEMENTS, 256) if on_cpu else (_GPU_CALL_ELEMENTS, 1024)
        rows = min(most, max(_FEWEST_ROWS, 1 << max(0, (elements // size).bit_length() - 1)))
        rows = min(rows, self.tuning.rows or rows)
        if self.batch_size is not None and size * _FEWEST_ROWS > elements:
            rows = min(rows, self.batch_size)  # large inputs: the user knows the memory best
        return rows if self.max_rows is None else min(rows, self.max_rows)

    @contextmanager
    def session(self) -> Iterator[Model]:
        """Evaluation mode, no weight gradients, float32 arithmetic; all of it undone at the end.

        Everything that runs the model does so inside a session. Sessions may be nested.
        """
        with guarded(self.modules, self.device):
            yield self

    # ------------------------------------------------------------------ running

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` float32 of inputs ``(n, *shape)``; the mean over draws if random."""
        return self.answer([Query(x)])[0].logits

    def replay(self, x: Tensor, size: int = 1) -> Tensor:
        """Logits ``(n, k)`` of every row on its own, or among ``size``: not as the search asked."""
        if len(x) == 0:
            return self.logits(x)
        size = min(size, self.call_rows(tuple(x.shape[1:])))
        with self._crashes(), torch.no_grad():
            rows = [self._scores(part.to(self.device)) for part in x.split(size)]
        self.passes.forward += len(x)
        return torch.cat(rows)

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        """As :meth:`answer`, in the precision of the search: what fools here must be judged."""
        if self.tuning.is_exact:
            return self.answer(queries)
        precision, is_compiled = self.tuning.precision, self.tuning.is_compiled
        self._is_halved, self._is_compiled = precision == "bf16", is_compiled
        try:
            with tf32(precision == "tf32"), compiling(is_compiled):
                return self.answer(queries)
        finally:
            self._is_halved = self._is_compiled = False

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Run all queries, those with equally many losses together.

        Where the device's memory is exhausted, calls are halved until they fit.
        """
        while True:
            try:
                with self._crashes():
                    return self._answer(queries)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(error, max((len(q.points) for q in queries), default=0))

    def _answer(self, queries: Sequence[Query]) -> list[Answer]:
        answers: list[list[Answer]] = [[] for _ in queries]
        kinds = dict.fromkeys((query.n_backward, query.route) for query in queries)
        for n_backward, route in sorted(kinds, key=lambda kind: -kind[0]):
            same = [
                i for i, q in enumerate(queries) if (q.n_backward, q.route) == (n_backward, route)
            ]
            for call in self._calls([(i, queries[i]) for i in same]):
                for (i, _), answer in zip(call, self._draw(call, n_backward), strict=True):
                    answers[i].append(answer)
        return [joined(parts) for parts in answers]

    def _calls(self, queries: list[tuple[int, Query]]) -> Iterator[list[tuple[int, Query]]]:
        """The queries cut into calls of at most ``call_rows`` rows."""
        call: list[tuple[int, Query]] = []
        room = 0
        for i, query in queries:
            limit = self._limit(query.points)
            start, n = 0, len(query.points)
            while start < n or n == 0:
                if room == 0:
                    if call:
                        yield call
                    call, room = [], limit
                stop = min(n, start + room)
                call.append((i, cut(query, start, stop)))
                room -= stop - start
                start = stop
                if n == 0:
                    break
        if call:
            yield call

    def _limit(self, points: Tensor) -> int:
        rows = self.call_rows(tuple(points.shape[1:]))
        size = self.block.size
        if self.block.is_filled:
            return max(1, rows // size)
        return size if self.block.is_fixed else -(-rows // size) * size

    def _draw(self, call: list[tuple[int, Query]], n_backward: int) -> list[Answer]:
        """One call, or the average of several if the model is random."""
        queries = [query for _, query in call]
        route = queries[0].route
        if route is not None and n_backward:
            with self._uncompiled():
                return route.answers(self, queries)
        return self.averaged(queries, self.draws)

    def averaged(self, queries: list[Query], draws: int) -> list[Answer]:
        """The mean of ``draws`` answers to one call of equally many losses a query."""
        n_backward = queries[0].n_backward
        rounds = [self._call(queries, n_backward) for _ in range(draws)]
        if draws == 1:
            return rounds[0]
        return [mean_of(parts) for parts in zip(*rounds, strict=True)]

    def _call(self, queries: list[Query], n_backward: int) -> list[Answer]:
        points = torch.cat([q.points for q in queries]) if len(queries) > 1 else queries[0].points
        n, sizes = len(points), [len(q.points) for q in queries]
        x = self.block.place(points.to(self.device))
        self.passes.forward += n
        if n_backward == 0:
            with torch.no_grad():
                logits = self.block.pick(self._scores(x), n)
            return [bare(part) for part in split(logits, sizes)]
        self.passes.backward += n * n_backward
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.block.pick(self._scores(x), n)
            parts = split(logits, sizes)
            losses = [loss_of(q.objective, part) for q, part in zip(queries, parts, strict=True)]
            gradients = gradients_of(losses, x, n_backward, self.block)
        return [
            Answer(z, loss.detach(), g)
            for z, loss, g in zip(split(logits.detach(), sizes), losses, gradients, strict=True)
        ]

    def _scores(self, x: Tensor) -> Tensor:
        """The network's output as logits ``(n, k)`` float32."""
        return as_logits(self.raw(x), self.head)

    def raw(self, x: Tensor) -> Tensor:
        """The network's own output for ``x``: normalised, in its precision, unwrapped."""
        x = x.to(self.dtype)
        if self.mean is not None and self.std is not None:
            self._check_channels(x)
            shape = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 2 else (-1,)
            x = (x - self.mean.to(x).reshape(shape)) / self.std.to(x).reshape(shape)
        if self.tuning.is_channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        out = unwrapped(self._output(x))
        if len(out) != len(x):
            raise ModelError(
                f"The model gave {tuple(out.shape)} for {len(x)} inputs: its first dimension must "
                "be the number of inputs."
            )
        return out.to(self.device)

    def _output(self, x: Tensor) -> Any:
        if self.takes_arrays:
            return self.f(x.detach().cpu().numpy())
        f = self._quick() if self._is_compiled else self.f
        if not self._is_halved:
            return f(x)
        with torch.autocast(self.device.type, torch.bfloat16):
            return f(x)

    def _quick(self) -> Callable[..., Any]:
        """``f`` compiled, for any number of rows; made where it is first needed."""
        if self._compiled is None:
            self._compiled = torch.compile(self.f, dynamic=True)
        return self._compiled

    @contextmanager
    def _uncompiled(self) -> Iterator[None]:
        """A route looks at the model's own operators."""
        before, self._is_compiled = self._is_compiled, False
        try:
            yield
        finally:
            self._is_compiled = before

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled code: every process makes its own."""
        return {**vars(self), "_compiled": None}

    def _check_channels(self, x: Tensor) -> None:
        channels = x.shape[1] if x.ndim > 1 else 1
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise ModelError(
                    f"{name} has {len(values)} numbers, but the inputs have {channels} channels "
                    f"(shape {tuple(x.shape[1:])}). Give one number, or one per channel."
                )

    def _halve(self, error: BaseException, rows: int) -> None:
        text = str(error).lower()
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if not out_of_memory and not any(word in text for word in _OUT_OF_MEMORY):
            raise error
        seen = min(rows, self.max_rows or rows)
        if seen <= 1:
            raise ModelCrash(
                "The device's memory does not hold one sample's forward and backward pass. Use a "
                "device with more memory, or smaller inputs."
            ) from error
        self.max_rows = max(1, seen // 2)
        if self.block.size > self.max_rows:
            self.block = replace(self.block, size=self.max_rows)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _crashes(self) -> Iterator[None]:
        """Tell the model's own exceptions from ours."""
        try:
            yield
        except (HoldfastError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if any(word in str(error).lower() for word in _OUT_OF_MEMORY):
                raise
            raise ModelCrash(
                f"The model raised {type(error).__name__}: {error}. What was found so far is in "
                "the journal; mend the model and resume."
            ) from error

    # ------------------------------------------------------------------ recognising

    def recognise(self, x: Tensor) -> Head:
        """Find out what the output means from the answer to some clean inputs, and remember it.

        Raises:
            ModelError: where it is not the output of a classifier.
        """
        with self.session(), torch.no_grad():
            out = self._few_outputs(x.to(self.device))
        self.head = recognised(out, self.head.n_classes)
        if self._given_head is not None:
            self.head = replace(self.head, kind=self._given_head)
        if self.head.kind == "labels":
            self.access = Access.LABELS
        return self.head

    def _few_outputs(self, x: Tensor) -> Tensor:
        """The outputs for as many of these inputs as the memory holds."""
        try:
            return self._first_output(x)
        except torch.OutOfMemoryError as error:
            self._halve(error, len(x))
            return self._few_outputs(x[: max(1, len(x) // 2)])

    def _first_output(self, x: Tensor) -> Tensor:
        try:
            return self.raw(x)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self.modules or self.takes_arrays:
                raise self._cannot_run(x, error) from error
        self.takes_arrays = True
        try:
            return self.raw(x)
        except Exception as error:
            raise self._cannot_run(x, error) from error

    def _cannot_run(self, x: Tensor, error: Exception) -> ModelError:
        return ModelError(
            f"The model cannot run on inputs of shape {tuple(x.shape)} "
            f"({type(error).__name__}: {error}). Check that the data has the shape the model was "
            "trained on (images are channels first: (n, channels, height, width))."
        )

    def restricted(self, access: Access) -> None:
        """Let attackers see no more than ``access``."""
        if not self.access.allows(access):
            raise ModelError(
                f"The model gives {self.access.value} only; an attacker cannot have "
                f"{access.value}. Use --access {self.access.value}."
            )
        self.access = access
        if access is Access.LABELS and self.head.kind != "labels":
            self.head = replace(self.head, kind=f"{self.head.kind}, labels only")
