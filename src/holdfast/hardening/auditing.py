"""The audits before and after: the same samples, the same attacks, within the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from holdfast.attacks.pgd import PGD
from holdfast.data import Data, FirstN
from holdfast.engine.inner import inner_attack
from holdfast.engine.journal import header_of, journal_path, read
from holdfast.engine.run import run
from holdfast.events import Event
from holdfast.hardening import corruptions
from holdfast.hardening.asking import Ask, Ready
from holdfast.hardening.state import State
from holdfast.hardening.validation import trains_bounds
from holdfast.model import Model
from holdfast.plan import Budget, DataSpec, ModelSpec, Plan

if TYPE_CHECKING:
    from holdfast.hardening.price import Answers
    from holdfast.reports.report import Report

CASCADE = "standard"
_SHARE, _MOST_S = 0.12, 120.0  # of the budget, for the audit after; the one before takes less
_BEFORE_SHARE = 0.06
_PASSES = 5000  # forward and backward passes of `standard` per sample, most of them robust
_MEASURED = 32  # rows of the batch that is timed: as many as stand at the end of an audit
_PROOFS_FROM_S = 60.0  # less time than this is better spent on attacks
_FEWEST, _MOST = 30, 1000
_LEAST_S = 2.0
_CLOSING_S = 2.0  # the model and the card are written


@final
@dataclass(frozen=True)
class Rows:
    """Some samples of other data."""

    data: Data
    rows: tuple[int, ...]
    description: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.data.shape)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.class_names

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples at these places."""
        return self.data.fetch([self.rows[int(i)] for i in indices])


class Audits:
    """Both audits of a hardening.

    Args:
        ask: What was asked for.
        ready: The copy that is trained, and the samples.
        directory: ``before`` and ``after`` lie below it.
        fabric: Only the first of several processes audits.
    """

    def __init__(self, ask: Ask, ready: Ready, directory: Path, fabric: Any) -> None:
        self.ask, self.ready, self.directory, self.fabric = ask, ready, directory, fabric
        self._began = time.monotonic()
        self.data = self._samples() if ask.audit else None
        self._corrupted_before: Answers = {}

    @property
    def reserve_s(self) -> float:
        """Seconds that the audit after may take."""
        if self.ask.seconds is None or not self.ask.audit:
            return 0.0
        return min(_SHARE * self.ask.seconds, _MOST_S)

    @property
    def _has_time_for_proofs(self) -> bool:
        is_certified = self.ask.recipe is not None and trains_bounds(self.ask.recipe)
        return is_certified or self.ask.seconds is None or self.reserve_s >= _PROOFS_FROM_S

    def before(self) -> Generator[Event, None, Report | None]:
        """The model as it came; from scratch the renewed one, which every sitting begins with."""
        limit = self.ask.seconds
        seconds = None if limit is None else max(_LEAST_S, _BEFORE_SHARE * limit)
        model = self.ready.model if self.ask.from_scratch else self.ask.model
        self._corrupted_before = self._under_corruptions(model)
        return (yield from self._audit(model, "before", seconds))

    def after(self, state: State) -> Generator[Event, None, Report | None]:
        """The hardened model, in what is left of the budget."""
        seconds = None
        if self.ask.seconds is not None:
            left = self.ask.seconds - (time.monotonic() - self._began)
            seconds = max(_LEAST_S, left - _CLOSING_S, self.reserve_s / 2)
        self.ready.model.f.eval()  # type: ignore[attr-defined]
        return (yield from self._audit(self.ready.model, "after", seconds))

    def corrupted(self) -> tuple[Answers, Answers]:
        """Whether each sample is right under each corruption, before and after."""
        return self._corrupted_before, self._under_corruptions(self.ready.model)

    def _under_corruptions(self, model: Model) -> Answers:
        if self.data is None or not self.fabric.is_global_zero:
            return {}
        return corruptions.answers(model, self.data, len(self.data), self.ask.seed)

    def _audit(
        self, model: Model, name: str, seconds: float | None
    ) -> Generator[Event, None, Report | None]:
        from holdfast.reports.report import Report

        if self.data is None or not self.fabric.is_global_zero:
            return None
        ask, directory = self.ask, self.directory / name
        plan = Plan(
            model=ModelSpec(source=ask.source, weights=ask.weights),
            data=DataSpec(source=ask.names.get("test", "")),
            threats=tuple(t.describe() for t in ask.threats),
            cascade=CASCADE,
            budget=Budget(seconds=seconds),
            verify="fast" if self._has_time_for_proofs else "off",
            curve_steps=0,
            seed=ask.seed,
        )
        yield from run(plan, model, self.data, directory, ask.threats)
        return Report.load(directory)

    def _samples(self) -> Data:
        """The test samples, or the validation samples; as many as there is time for."""
        n = self._as_before() or self.ask.n_audit or self._affordable()
        if self.ask.test is not None:
            return FirstN(self.ask.test, n)
        samples = self.ready.samples
        rows = samples.split.validation[:n].tolist()
        name = f"{len(rows)} validation samples of {samples.validation_store.data.description}"
        return Rows(samples.validation_store.data, tuple(rows), name)

    def _as_before(self) -> int | None:
        """How many an earlier sitting took: both audits are of the same samples."""
        directory = self.directory / "before"
        if not journal_path(directory).is_file():
            return None
        records = read(directory)
        return int(header_of(records).data["n_samples"]) if records else None

    def _affordable(self) -> int:
        if self.ask.seconds is None:
            return _MOST
        passes = self.reserve_s / _pass_s(self.ask, self.ready)
        n = math.floor(passes / (_PASSES * len(self.ask.threats)))
        return min(_MOST, max(_FEWEST, n))


def _pass_s(ask: Ask, ready: Ready) -> float:
    """Seconds of one sample's pass inside an attack, measured on one batch."""
    n = min(_MEASURED, len(ready.samples.store))
    x, y = ready.samples.store.fetch(torch.arange(n))
    attack, allowed = PGD(steps=5), ask.threats[0].bind(x, ask.model.domain)
    with ask.model.session():
        inner_attack(attack, ask.model, x, y, allowed)  # warms up
        start = time.perf_counter()
        inner_attack(attack, ask.model, x, y, allowed)
    return max(1e-7, (time.perf_counter() - start) / (n * 2 * attack.steps))


def describe_rows(ask: Ask, ready: Ready, n: int) -> str:
    """What the audits' samples are, and whether training saw them."""
    if ask.test is not None:
        return f"{n} test samples, which neither training nor the choice of weights saw"
    where = "set apart from the training data" if ready.samples.split.is_carved else "given"
    return f"{n} validation samples ({where}), by which the best weights were chosen"
