"""Everything that decides a training run, written down before it starts."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """How to train. Chosen by :mod:`holdfast.hardening.auto` where the user does not say.

    A run is bounded by ``n_updates`` or by ``seconds``: the first is repeatable bit for bit, the
    second ends on time on any machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    n_updates: int | None = Field(default=None, gt=0)
    """Updates in all, over all epochs; None: until ``seconds`` are used up."""
    seconds: float | None = Field(default=None, gt=0)
    """Of training and validation together, all sittings added up."""
    batch_size: int = Field(default=128, ge=1)
    """Samples per update, over all processes."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is cut into, one after the other, where memory is short."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    """At the peak of the schedule."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest length of the gradient; None: any."""
    schedule: Literal["cyclic", "cosine", "piecewise", "constant"] = "cyclic"
    peak_at: float = Field(default=0.4, gt=0, lt=1)
    ramp_share: float = Field(default=0.5, ge=0, le=1)
    """Part of the training over which the radius grows from zero to its full size."""
    average: Literal["none", "ema", "swa"] = "ema"
    ema_decay: float = Field(default=0.999, gt=0, lt=1)
    augment: tuple[str, ...] = ()
    """Any of ``crop``, ``flip``, ``cutmix``."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: str = "32-true"
    """As Lightning Fabric names it: ``32-true``, ``bf16-mixed``, ``16-mixed``."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Mode of the network while inputs are crafted."""
    extra_share: float = Field(default=0.0, ge=0, lt=1)
    """Part of every batch that comes from the extra data."""
    updates_per_round: int = Field(default=100, ge=1)
    """Updates between two validations."""
    updates_per_check: int = Field(default=100, ge=1)
    """Updates between two looks at a held-out batch for signs of collapse."""
    n_validation: int = Field(default=1000, ge=1)
    validation_steps: int = Field(default=20, ge=1)
    """Steps of each of the validation's attacks."""
    seed: int = 0

    @property
    def is_repeatable(self) -> bool:
        """Whether the number of updates, and so the result, is fixed."""
        return self.n_updates is not None


class HardenPlan(BaseModel):
    """A whole hardening: what is trained, on what, against what, how."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    model: dict[str, Any] = {}
    """``source``, ``weights``, ``description`` and what else it takes to load it again."""
    data: dict[str, Any] = {}
    """``source`` and ``hash`` of the training, validation, extra and test data."""
    threats: tuple[str, ...] = Field(min_length=1)
    recipe: str = ""
    """The recipe with all its options, as text."""
    from_scratch: bool = False
    budget: str = ""
    """What the user asked for: ``45min``, ``30 epochs``."""
    settings: Settings = Settings()
    reasons: tuple[str, ...] = ()
    """Why these settings, in sentences."""

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits: the hash of what was asked for, not of what was measured."""
        asked = self.model_dump(mode="json", include={"model", "data", "threats", "from_scratch"})
        asked["budget"] = self.budget
        text = json.dumps(asked, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
