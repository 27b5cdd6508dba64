"""The report: what a run found, as plain data with every rate and its interval."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor

from holdfast.errors import InputError, JournalError, PrerequisiteError
from holdfast.evaluation.statistics import Paired, Rate, paired
from holdfast.plan import Plan
from holdfast.record import Failure, Finding, Session, Verdict
from holdfast.reports._cascade import granted
from holdfast.reports.results import COLUMNS, SAFE, ClassResult, Frozen, Samples, ThreatResult
from holdfast.reports.results import per_class as _per_class
from holdfast.reports.results import worst_of as _worst_of
from holdfast.threat import Access

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

    from holdfast.reports.artefacts import Example


@dataclass(frozen=True, slots=True)
class Phase:
    """What a part of the run cost, summed over samples. ``threat`` is empty for shared parts."""

    threat: str
    name: str
    forward: int
    backward: int


class Report(Frozen):
    """What an audit found; ``print`` it, show it in a notebook, or :meth:`save` it as a page.

    Robust accuracy is an upper bound: it counts every sample that no attack has broken. Samples
    that the model gets wrong unchanged are not robust.

    Attributes:
        samples: The unchanged samples, column by column.
        threats: Results by the threat's text.
        warnings: What a reader must know, most severe first.
        failures: Parts of the run that ended in an error.
        directory: Where the run's files are; None for a report read from JSON.
    """

    version: Literal[1] = 1
    plan_id: str
    plan: Plan
    created: str
    command: str
    environment: dict[str, str]
    model: dict[str, Any]
    data: dict[str, Any]
    samples: Samples
    threats: dict[str, ThreatResult]
    warnings: tuple[Finding, ...] = ()
    failures: tuple[Failure, ...] = ()
    sessions: tuple[Session, ...] = ()
    directory: Path | None = Field(default=None, exclude=True, repr=False)

    # ------------------------------------------------------------------ results

    @cached_property
    def clean_accuracy(self) -> Rate:
        """Samples that the model gets right unchanged."""
        return Rate.of(int(self.samples.is_correct.sum()), len(self.samples))

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each sample's verdict against an attacker who may use any of the threats."""
        if not self.threats:
            return ()
        return _worst_of([result.verdict for result in self.threats.values()])

    @cached_property
    def robust_accuracy(self) -> Rate:
        """Samples right and unbroken under every threat: an upper bound on the truth."""
        return Rate.of(sum(v in SAFE for v in self.verdicts), len(self.verdicts))

    @cached_property
    def verified_accuracy(self) -> Rate:
        """Samples with a proof under every threat: a lower bound on the truth."""
        return Rate.of(self.verdicts.count(Verdict.VERIFIED), len(self.verdicts))

    @cached_property
    def classes(self) -> tuple[ClassResult, ...]:
        """Results per class against all threats together."""
        return _per_class(self.samples.y, self.verdicts)

    @property
    def n_samples(self) -> int:
        """Samples of the data, looked at or not."""
        return int(self.data.get("n_samples", len(self.samples)))

    @property
    def n_unfinished(self) -> int:
        """Unbroken samples that never got all their attacks, and samples not looked at at all."""
        return self.verdicts.count(Verdict.UNFINISHED) + self.n_samples - len(self.samples)

    @property
    def has_scores(self) -> bool:
        """Whether confidences mean something: not where the model answers with labels only."""
        return "labels" not in str(self.model.get("head", ""))

    @property
    def access(self) -> Access:
        """What the attacker saw of the model."""
        return granted(self.plan, self.model)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        names = self.data.get("class_names") or ()
        return str(names[label]) if 0 <= label < len(names) else str(label)

    def verdict(self, sample: int, threat: str | None = None) -> Verdict:
        """The verdict of one sample under one threat; None: under all of them.

        Raises:
            InputError: where there is no such sample or threat.
        """
        if threat is not None and threat not in self.threats:
            raise InputError(f"No threat {threat!r} here. Audited: {', '.join(self.threats)}.")
        verdicts = self.verdicts if threat is None else self.threats[threat].verdict
        try:
            return verdicts[self.samples.sample.index(sample)]
        except (ValueError, IndexError):
            raise InputError(
                f"There is no result for sample {sample}: {len(verdicts)} samples were looked at."
            ) from None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What each part of the run cost; the parts add up to all passes of all sessions."""
        parts = [Phase("", "clean", sum(self.samples.forward), sum(self.samples.backward))]
        for name, result in self.threats.items():
            parts += [Phase(name, s.attack, s.forward, s.backward) for s in result.stages]
            if result.curve_forward:
                parts.append(Phase(name, "curve", result.curve_forward, 0))
        forward = sum(s.passes_forward for s in self.sessions) - sum(p.forward for p in parts)
        backward = sum(s.passes_backward for s in self.sessions) - sum(p.backward for p in parts)
        if forward > 0 or backward > 0:
            parts.append(Phase("", "checks and other", max(forward, 0), max(backward, 0)))
        return tuple(parts)

    def compare(self, other: Report) -> Paired:
        """Whether ``other`` is more robust than this report, on the same samples.

        Raises:
            InputError: where the two did not look at the same samples.
        """
        same = self.data.get("hash") == other.data.get("hash")
        if not same or self.samples.sample != other.samples.sample:
            raise InputError("These reports are about different samples: audit both on the same.")
        safe = ([v in SAFE for v in report.verdicts] for report in (self, other))
        return paired(*safe)

    # ------------------------------------------------------------------ files and frames

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report of the run in a directory, or one that was saved as JSON.

        Raises:
            JournalError: where there is neither.
        """
        from holdfast.reports import fold, json

        path = Path(path)
        return fold.from_directory(path) if path.is_dir() else json.read(path)

    def save(self, path: str | Path) -> Path:
        """Write the report in the format of the path's suffix: ``.html``, ``.json``, ``.txt``.

        Raises:
            InputError: for another suffix.
            JournalError: where the file cannot be written.
        """
        path = Path(path)
        renderers = _renderers()
        if path.suffix.lower() not in renderers:
            known = ", ".join(sorted(renderers))
            raise InputError(f"Cannot write a report as {path.name!r}. Suffixes known: {known}.")
        text = renderers[path.suffix.lower()](self)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise JournalError(f"Cannot write the report {path}: {error}.") from None
        return path

    def adversarial(self, threat: str | None = None) -> tuple[Tensor, Tensor]:
        """Numbers of the broken samples ``(m,)`` and their adversarial inputs ``(m, *shape)``.

        With ``threat`` None, every sample that any threat breaks, by the first that does.

        Raises:
            JournalError: where the run's directory is not at hand.
        """
        from holdfast.reports import artefacts

        return artefacts.adversarial(self, threat)

    def examples(self, threat: str) -> list[Example]:
        """The most easily broken samples under a threat, the easiest first."""
        from holdfast.reports import artefacts

        return artefacts.examples(self, threat)

    @property
    def records(self) -> Any:
        """A pandas frame with a row for each sample under each threat.

        Raises:
            PrerequisiteError: where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise PrerequisiteError(
                'Frames need pandas. Install it with: pip install "holdfast[data]"'
            ) from None
        samples = {name: getattr(self.samples, name) for name in Samples.model_fields}
        own = ("sample", "y", "target")
        shared = {name: samples.pop(name) for name in own}
        clean = {f"clean_{name}": column for name, column in samples.items()}
        frames = []
        for name, result in self.threats.items():
            columns = {key: getattr(result, key) for key in COLUMNS}
            columns["verdict"] = [str(verdict) for verdict in result.verdict]
            threat = {"threat": [name] * result.n}
            frames.append(pd.DataFrame({**threat, **shared, **columns, **clean}))
        if not frames:
            return pd.DataFrame({**shared, **clean})
        return pd.concat(frames, ignore_index=True)

    # ------------------------------------------------------------------ display

    def __eq__(self, other: object) -> bool:
        """Equal content; where the run's files are does not matter."""
        if not isinstance(other, Report):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        from holdfast.reports import terminal

        return terminal.render(self)

    def __rich__(self) -> ConsoleRenderable:
        from holdfast.reports import terminal

        return terminal.summary(self)

    def _repr_html_(self) -> str:
        from holdfast.reports import html

        return html.fragment(self)


def _renderers() -> dict[str, Callable[[Report], str]]:
    """Every format by suffix: a public module here with ``SUFFIXES`` and ``render``."""
    package = importlib.import_module("holdfast.reports")
    found: dict[str, Callable[[Report], str]] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if not entry.name.startswith("_"):
            module = importlib.import_module(f"holdfast.reports.{entry.name}")
            found |= dict.fromkeys(getattr(module, "SUFFIXES", ()), getattr(module, "render", None))
    return found
