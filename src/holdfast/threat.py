"""What an attacker may do, and wants: :class:`Threat`, :class:`Goal`, :class:`Access`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.errors import DataError, PlanError, ThreatError


class Access(StrEnum):
    """What the attacker sees of the model; each level includes those below it."""

    GRADIENTS = "gradients"
    SCORES = "scores"
    LABELS = "labels"

    def allows(self, needed: Access) -> bool:
        """Whether an attack that needs ``needed`` can run with this access."""
        order = [Access.LABELS, Access.SCORES, Access.GRADIENTS]
        return order.index(self) >= order.index(needed)


def parse_access(text: Access | str) -> Access:
    """The access that a text like ``scores`` names.

    Raises:
        PlanError: for any other text; the message lists those that exist.
    """
    try:
        return Access(text)
    except ValueError:
        known = ", ".join(access.value for access in Access)
        raise PlanError(
            f"Unknown access {text!r}. What the attacker sees is one of: {known}."
        ) from None


@dataclass(frozen=True, slots=True)
class Domain:
    """The box of all valid inputs.

    Attributes:
        lower: Smallest valid value: a float, or a tensor that broadcasts against one sample.
        upper: Largest valid value, likewise.
    """

    lower: float | Tensor = 0.0
    upper: float | Tensor = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        if not bool((lower <= upper).all()) or bool((lower >= upper).all()):
            raise DataError(
                f"The input domain [{self.lower}, {self.upper}] is empty. Give the smallest valid "
                "input first, then the largest, e.g. 0,1 or -1,1."
            )

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds as tensors of ``like``'s device and dtype."""
        options = {"device": like.device, "dtype": like.dtype}
        return torch.as_tensor(self.lower, **options), torch.as_tensor(self.upper, **options)

    @property
    def width(self) -> float:
        """The largest side of the box."""
        return float((torch.as_tensor(self.upper) - torch.as_tensor(self.lower)).max())

    def describe(self) -> str:
        """``[0, 1]``, or the range of the per-feature bounds."""
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        if lower.numel() == 1 and upper.numel() == 1:
            return f"[{lower.item():g}, {upper.item():g}]"
        return f"per feature, within [{lower.min().item():g}, {upper.max().item():g}]"


@runtime_checkable
class AllowedSet(Protocol):
    """The allowed changes of these samples: a threat bound to clean inputs, one row per job.

    A record of tensors (see :mod:`holdfast.rows`). ``x`` is always a member. Tensors shaped like
    ``x`` are ``(n, *shape)``, those per sample ``(n,)``.
    """

    @property
    def x(self) -> Tensor:
        """The clean inputs ``(n, *shape)``."""
        ...

    @property
    def radius(self) -> Tensor:
        """The size of the set ``(n,)``: eps, in the units of :meth:`distance`."""
        ...

    def project(self, z: Tensor) -> Tensor:
        """The member nearest to ``z`` in the Euclidean sense."""
        ...

    def direction(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The steepest ascent direction of unit size in the set's own geometry.

        ``at`` is the point it starts from, for geometries where it matters.
        """
        ...

    def natural_step(self, steps: int) -> Tensor:
        """A step size ``(n,)`` along :meth:`direction` that crosses the set within ``steps``."""
        ...

    def maximise_linear(self, gradient: Tensor) -> Tensor:
        """The member with the largest inner product with ``gradient``."""
        ...

    def sample(self, rng: Rng) -> Tensor:
        """A random member, spread over the whole set."""
        ...

    def towards(self, z: Tensor, share: Tensor) -> Tensor:
        """The point at ``share`` ``(n,)`` of the way from ``x`` to ``z``: a smaller change."""
        ...

    def distance(self, z: Tensor) -> Tensor:
        """How far ``z`` is from ``x`` in the set's own units ``(n,)``, in float64."""
        ...

    def contains(self, z: Tensor) -> Tensor:
        """Whether ``z`` is a member ``(n,)`` bool, up to :meth:`tolerance`."""
        ...

    def tolerance(self) -> Tensor:
        """What rounding may add to :meth:`distance` ``(n,)``."""
        ...

    def hull(self) -> tuple[Tensor, Tensor]:
        """The smallest box around the set: its lower and upper corner."""
        ...

    def resized(self, radius: Tensor) -> Self:
        """The same set with another radius ``(n,)``."""
        ...


@runtime_checkable
class Threat(Protocol):
    """A set of allowed changes, before it meets a sample."""

    @property
    def norm(self) -> str:
        """The geometry: ``linf``, ``l2``, ``l1``, ``l0`` or the name of another set."""
        ...

    def select(self, rows: Sequence[int]) -> Threat:
        """The threat for some samples: a radius per sample is cut to them."""
        ...

    def bind(self, x: Tensor, domain: Domain) -> AllowedSet:
        """The allowed set of each sample of ``x`` ``(n, *shape)``."""
        ...

    def check(self, domain: Domain, shape: tuple[int, ...]) -> None:
        """Raise :class:`ThreatError` where this threat makes no sense for such inputs."""
        ...

    def describe(self) -> str:
        """The threat as the text that :func:`parse_threat` reads."""
        ...


TARGET_RULES: Mapping[str, str] = {
    "random": "a wrong class drawn at random for each sample",
    "least_likely": "the class with the lowest score on the clean input",
    "runner_up": "the wrong class with the highest score on the clean input",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """When an attacker has won.

    Attributes:
        target: None (any wrong answer), a rule of :data:`TARGET_RULES`, or the number of a class.
    """

    target: str | int | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown rule."""
        if isinstance(self.target, str) and self.target not in TARGET_RULES:
            raise ThreatError(
                f"Unknown target {self.target!r}. Use a class number or one of: "
                f"{', '.join(TARGET_RULES)}."
            )

    @property
    def is_targeted(self) -> bool:
        """Whether the attacker wants one particular answer."""
        return self.target is not None

    def describe(self) -> str:
        """The goal in words."""
        if self.target is None:
            return "any wrong answer"
        if isinstance(self.target, int):
            return f"the answer {self.target}"
        return TARGET_RULES[self.target]


def parse_threat(text: str) -> Threat:
    """The threat that a text like ``linf:8/255`` names.

    Raises:
        ThreatError: for an unknown name or an unreadable size; the message lists what exists.
    """
    from holdfast import registry

    if not isinstance(text, str):
        raise ThreatError(
            f"{text!r} is no threat. Give one as text, e.g. 'linf:8/255', or a threat object."
        )
    name, _, size = text.strip().partition(":")
    return registry.perturbation(name.strip().lower()).parse(name.strip().lower(), size.strip())


def parse_threats(given: Threat | str | Sequence[Threat | str]) -> tuple[Threat, ...]:
    """One threat or several, as objects or as text.

    Raises:
        ThreatError: where there is none, or something else among them.
    """
    several: list[Any] = [given]
    if isinstance(given, Iterable) and not isinstance(given, (str, Threat)):
        several = list(given)
    if not several:
        raise ThreatError("No threat was given. Give at least one, e.g. 'linf:8/255'.")
    return tuple(t if isinstance(t, Threat) else parse_threat(t) for t in several)
