"""The card of a hardening: before and after, what it cost, what got worse, how to repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast.errors import JournalError
from holdfast.hardening.checkpoint import explained
from holdfast.record import Finding

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

NAME = "card.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Accuracy(_Part):
    """A rate with its exact 95% interval."""

    value: float
    lower: float
    upper: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.lower:.1%}, {self.upper:.1%}]"


class Side(_Part):
    """One model's audit."""

    clean: Accuracy
    robust: dict[str, Accuracy]
    """By threat: an upper bound, right and unbroken by every attack of ``standard``."""
    verified: dict[str, Accuracy]
    """By threat: a lower bound, proven; empty where no verifier could be used."""
    calibration_error: float
    """Expected calibration error over 15 bins of confidence, on unchanged inputs."""
    corrupted: dict[str, float] = {}
    """Accuracy under ordinary damage (noise, blur, faint images, ...), by kind."""
    n_unfinished: int
    """Samples whose attacks the budget cut short: they count as unbroken."""


class Worse(_Part):
    """Something that is worse after hardening than before."""

    what: str
    before: float
    after: float
    n: int
    is_sure: bool | None
    """Whether the difference is more than chance (paired test, 5%); None: not tested."""


class Round(_Part):
    """One validation during the training."""

    epoch: float
    seconds: float
    loss: float
    clean: float
    robust: float
    verified: float | None = None


class HardenCard(_Part):
    """Everything that is to be said of a hardening; plain data."""

    version: Literal[1] = 1
    model: str
    model_path: str
    """The hardened model; empty where it was not saved."""
    threats: tuple[str, ...]
    data: str
    audited_on: str
    """Which samples the audits are about, and whether training ever saw them."""
    recipe: str
    recipe_at_end: str
    settings: dict[str, Any]
    reasons: tuple[str, ...]
    before: Side | None
    after: Side | None
    rounds: tuple[Round, ...]
    chosen_round: str
    seconds: float
    training_seconds: float
    epochs: float
    updates: int
    passes: float
    """Forward and backward passes of single samples in training."""
    peak_memory_mb: float
    energy_kj: float | None
    n_parameters: int
    worse: tuple[Worse, ...]
    warnings: tuple[Finding, ...]
    command: str
    environment: dict[str, str]

    @property
    def gain(self) -> dict[str, float]:
        """Robust accuracy after minus before, by threat."""
        if self.before is None or self.after is None:
            return {}
        before = self.before.robust
        return {t: self.after.robust[t].value - before[t].value for t in before}

    @property
    def clean_lost(self) -> float | None:
        """Clean accuracy before minus after."""
        if self.before is None or self.after is None:
            return None
        return self.before.clean.value - self.after.clean.value

    @classmethod
    def load(cls, directory: Path) -> HardenCard:
        """The card in a directory.

        Raises:
            JournalError: where there is none.
        """
        path = directory / NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise JournalError(f"There is no finished hardening in {directory}: {error}.") from None

    def save(self, directory: Path) -> None:
        """Write ``card.json`` and ``card.html``.

        Raises:
            JournalError: where they cannot be written.
        """
        from holdfast.hardening.page import render

        texts = {"card.html": render(self), NAME: self.model_dump_json(indent=1)}
        for name, text in texts.items():
            draft = directory / f".{name}.tmp"
            try:
                draft.write_text(text, encoding="utf-8")
                draft.replace(directory / name)
            except OSError as error:
                raise explained(error, directory / name) from error

    def __rich__(self) -> ConsoleRenderable:
        from holdfast.hardening.terminal import summary

        return summary(self)

    def __str__(self) -> str:
        from holdfast.hardening.terminal import text

        return text(self)
