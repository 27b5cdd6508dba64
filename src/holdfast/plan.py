"""The plan: everything that a run will do, written down before it starts."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from holdfast.errors import PlanError
from holdfast.threat import Access, Goal

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def explain(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """Pydantic's findings about a ``kind``, one line each: where, what, and the value seen."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        place = f"  {place}: " if place else "  "
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden" and kind is not None:
            text = f"There is no such entry. Allowed: {', '.join(_entries(kind, item['loc']))}"
        lines.append(f"{place}{text} (seen: {item['input']!r})")
    return "\n".join(lines)


def _entries(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """What may stand where ``place`` does, in a ``kind``."""
    fields = kind.model_fields
    for part in place[:-1]:
        fields = fields[str(part)].annotation.model_fields  # type: ignore[union-attr]
    return list(fields)


@contextmanager
def checked(name: str, kind: type[BaseModel] | None = None) -> Iterator[None]:
    """Within this, what pydantic finds wrong, with a ``kind`` for one, is told in our words.

    Raises:
        PlanError: that ``name`` cannot be used, with every finding.
    """
    try:
        yield
    except ValidationError as error:
        raise PlanError(f"{name} cannot be used:\n{explain(error, kind)}") from None


class _Told(BaseModel):
    """What is wrong with values given by hand is told in our words, as a :class:`PlanError`."""

    def __init__(self, /, **data: Any) -> None:
        kind = type(self)
        with checked(f"{kind.__name__}(...)", kind):
            super().__init__(**data)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # reading goes past it


class Stage(_Told):
    """One attack of a cascade with its options; samples that fall in it leave the cascade."""

    model_config = ConfigDict(frozen=True, extra="allow")

    attack: str
    norms: tuple[str, ...] = ()
    """Norms this stage is for; empty: all that the attack can do."""
    access: tuple[Access, ...] = ()
    """Accesses this stage is for; empty: every one that is enough for the attack."""
    within: float | None = Field(default=None, gt=0)
    """Job j (from 0) is only for samples with less than ``within / (j + 1)`` of their clean margin
    left: work goes to those closest to falling. None: for all."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Only for a random share of the samples, drawn by each sample's own key. None: for all."""
    when: Literal["found"] | None = None
    """``found``: only if an earlier stage with a ``share`` broke a sample. None: always."""
    start: Literal["best"] | None = None
    """``best``: begin at the best point that earlier stages met, where there is one. None: as the
    attack does by itself."""
    draws: int | None = Field(default=None, gt=0)
    """Answers averaged per gradient, for models that answer at random. None: the model's usual."""

    @property
    def options(self) -> dict[str, Any]:
        """The attack's own options."""
        return dict(self.model_extra or {})

    def describe(self) -> str:
        """A short label, e.g. ``apgd(loss=ce, steps=100)``."""
        inner = ", ".join(f"{key}={value}" for key, value in self.options.items())
        for_whom = [f"for a random {self.share:.0%}"] if self.share is not None else []
        if self.within is not None:
            for_whom.append(f"within {self.within:g} of the margin")
        if self.start is not None:
            for_whom.append("from the best point")
        if self.draws is not None:
            for_whom.append(f"{self.draws} draws")
        return ", ".join([f"{self.attack}({inner})", *for_whom])


class Budget(_Told):
    """When to stop early; None means never.

    ``seconds`` bounds the whole run, ``passes`` and ``queries`` each sample's search under each
    threat (forward plus backward, and forward passes alone).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float | None = Field(default=None, gt=0)
    passes: int | None = Field(default=None, gt=0)
    queries: int | None = Field(default=None, gt=0)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``10min``, ``90s``, ``1h30min``, ``200passes``, ``1000queries``, or a comma list of them.

        Raises:
            PlanError: for anything else.
        """
        found: dict[str, Any] = {}
        for part in text.replace(" ", "").split(","):
            counted = re.fullmatch(r"(\d+)(passes|queries)", part)
            timed = re.findall(r"(\d+(?:\.\d+)?)(sec|s|min|m|h)", part)
            if counted and int(counted[1]) > 0:
                found[counted[2]] = int(counted[1])
            elif timed and "".join(a + b for a, b in timed) == part:
                found["seconds"] = sum(float(a) * _UNITS[b] for a, b in timed)
        if not found or len(found) != len(text.split(",")) or found.get("seconds") == 0:
            raise PlanError(
                f"Cannot read the budget {text!r}. Write a time (90s, 10min, 1h30min), passes per "
                "sample (200passes), queries per sample (1000queries), or several with commas."
            )
        return cls(**found)


def as_budget(given: Budget | str | None) -> Budget:
    """What a Python user gives as a budget; None is without limit.

    Raises:
        PlanError: for what is none, a number without a unit among it.
    """
    if given is None or isinstance(given, Budget):
        return given or Budget()
    return Budget.parse(str(given))


class ModelSpec(_Told):
    """How to load and wrap the model again; empty fields for a model given as a Python object."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    source: str = ""
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    domain: tuple[float, float] | Literal["data"] = (0.0, 1.0)
    classes: int | None = None


class DataSpec(_Told):
    """How to load the data again; empty fields for data given as Python objects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    label: str | None = None
    n: int | None = Field(default=None, gt=0)
    """Use the first n samples."""


class Plan(_Told):
    """Everything that decides a run's result, and how to run it.

    ``batch_size``, ``device``, ``threads``, ``workers``, ``budget.seconds`` and ``curve_steps``
    change how and how long a run goes, never the verdict of a finished job; :attr:`id` is the hash
    of everything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    threats: tuple[str, ...] = Field(min_length=1)
    target: str | int | None = None
    access: Access = Access.GRADIENTS
    cascade: str = "standard"
    stages: tuple[Stage, ...] = ()
    """Overrides the named cascade where not empty."""
    seed: int = 0
    budget: Budget = Budget()
    quantise: Literal["8bit"] | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of the search for changes; every verdict is given in float32."""
    compiled: bool = False
    """Whether the search runs compiled code (``torch.compile``); verdicts never do."""
    verify: Literal["auto", "off", "fast", "standard", "thorough"] = "auto"
    """Proofs beside the attacks: for survivors while they come cheaply; none; by bounds, by
    optimised bounds, by branch and bound."""
    trust: Literal["act", "reroute", "look", "off"] = "act"
    """Look whether attacks were misled, and act on it; act by other routes to the gradients, but
    not by longer attacks; look only; or neither. Where nothing is said, as the named cascade has
    it: nothing is added to a published protocol, and ``quick`` stays short."""
    curve_steps: int = Field(default=6, ge=0, le=30)
    """Bisection steps per broken sample for the accuracy-against-eps curve; 0: none."""
    batch_size: int | None = Field(default=None, ge=1)
    device: str | None = None
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch in every process; None: as many as a short measurement finds fastest."""
    workers: int = Field(default=1, ge=1)
    """Processes that attack; 1: this one alone."""

    @model_validator(mode="before")
    @classmethod
    def _trust_of_the_cascade(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("trust") is not None:
            return data
        rest = {key: value for key, value in data.items() if key != "trust"}
        own = None if rest.get("stages") else _cascade_trust(rest.get("cascade"))
        return rest if own is None else rest | {"trust": own}

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str | int | None) -> str | int | None:
        Goal(value)
        return value

    @property
    def acts_on_doubts(self) -> bool:
        """Whether what the checks doubt is acted on within the run."""
        return self.trust in ("act", "reroute")

    @property
    def goal(self) -> Goal:
        """What the attacker wants."""
        return Goal(self.target)

    @cached_property
    def resolved_stages(self) -> tuple[Stage, ...]:
        """The stages to run: those written in the plan, else those of the named cascade."""
        return self.stages or load_cascade(self.cascade)

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits: the hash of all that changes a verdict."""
        free = {"batch_size", "device", "threads", "workers", "curve_steps", "cascade", "stages"}
        data = self.model_dump(mode="json", exclude=free)
        data["budget"].pop("seconds")
        data["stages"] = [stage.model_dump(mode="json") for stage in self.resolved_stages]
        return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()

    def to_toml(self) -> str:
        """The plan as text that :meth:`from_toml` reads."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str, name: str = "the plan") -> Plan:
        """Read a plan.

        Raises:
            PlanError: with the line or the field that is wrong.
        """
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"{name} is not valid TOML: {error}.") from None
        with checked(name, cls):
            return cls.model_validate(content)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan file."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"Cannot read the plan {path}: {error}.") from None
        return cls.from_toml(text, str(path))


def stages_of(cascade: Iterable[Any], name: str) -> tuple[Stage, ...]:
    """Stages from tables, or as they are.

    Raises:
        PlanError: which stage of ``name`` is wrong, and how.
    """
    found = []
    for number, stage in enumerate(cascade, 1):
        with checked(f"Stage {number} of {name}"):
            found.append(Stage.model_validate(stage))
    return tuple(found)


def cascades() -> dict[str, str]:
    """Every named cascade and what it is for."""
    found: dict[str, str] = {}
    for entry in sorted(files("holdfast.cascades").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            text = tomllib.loads(entry.read_text(encoding="utf-8"))
            found[entry.name.removesuffix(".toml")] = text["summary"]
    return found


def _cascade_trust(name: Any) -> str | None:
    """What a named cascade says of ``trust``; None: nothing."""
    if not isinstance(name, str) or name not in cascades():
        return None
    text = files("holdfast.cascades").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text).get("trust")


def load_cascade(name: str) -> tuple[Stage, ...]:
    """The stages of a named cascade, or of a TOML file with ``[[stage]]`` tables.

    Raises:
        PlanError: where there is no such cascade; the message lists those that exist.
    """
    known = cascades()
    if name in known:
        text = files("holdfast.cascades").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise PlanError(f"Unknown cascade {name!r}. Available: {', '.join(known)}, or a TOML file.")
    try:
        tables = tomllib.loads(text)["stage"]
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"The cascade {name} is not valid TOML: {error}.") from None
    except KeyError:
        raise PlanError(
            f"The cascade {name} has no stages. Write at least one [[stage]] table, "
            'e.g. attack = "pgd".'
        ) from None
    return stages_of(tables, f"the cascade {name}")
