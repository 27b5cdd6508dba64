"""Norm balls cut with the domain: ``linf:8/255``, ``l2:0.5``, ``l1:12``, ``l0:20``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.errors import ThreatError
from holdfast.perturbations.l0 import L0Ball
from holdfast.perturbations.l1 import L1Ball
from holdfast.perturbations.l2 import L2Ball
from holdfast.perturbations.linf import LinfBall
from holdfast.threat import AllowedSet, Domain

SHAPES: dict[str, type[LinfBall] | type[L2Ball] | type[L1Ball] | type[L0Ball]] = {
    "linf": LinfBall,
    "l2": L2Ball,
    "l1": L1Ball,
    "l0": L0Ball,
}
ALIASES = {"inf": "linf", "l_inf": "linf", "l-inf": "linf", "l∞": "linf"}


@final
@dataclass(frozen=True)
class Ball:
    """Every input at most ``eps`` away in ``norm`` that lies in the domain.

    Attributes:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        eps: Radius in input units (``l0``: number of coordinates); or a tensor ``(n,)`` with one
            radius per sample.
        text: How the user wrote the radius, kept for reports.

    Raises:
        ThreatError: for another norm, or a radius that is negative or not finite.
    """

    names: ClassVar[tuple[str, ...]] = (*SHAPES, *ALIASES)
    summary: ClassVar[dict[str, str]] = {
        "linf": "every coordinate moves by at most eps, e.g. linf:8/255",
        "l2": "the Euclidean length of the change is at most eps, e.g. l2:0.5",
        "l1": "the absolute changes sum to at most eps, e.g. l1:12",
        "l0": "at most eps coordinates change, to any valid value, e.g. l0:20",
    }

    norm: str
    eps: float | Tensor
    text: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be a ball."""
        object.__setattr__(self, "norm", ALIASES.get(self.norm.lower(), self.norm.lower()))
        if self.norm not in SHAPES:
            raise ThreatError(f"Unknown norm {self.norm!r}. Use one of: {', '.join(SHAPES)}.")
        eps = torch.as_tensor(self.eps, dtype=torch.float64)
        if not bool(torch.isfinite(eps).all()) or bool((eps < 0).any()):
            raise ThreatError(
                f"The radius of {self.norm} is {self.eps}. Give a finite number that is not "
                f"negative, e.g. {self.summary[self.norm].split('e.g. ')[1]}."
            )

    @classmethod
    def parse(cls, name: str, size: str) -> Ball:
        """``("linf", "8/255")`` -> the ball; fractions and decimals are read exactly."""
        norm = ALIASES.get(name, name)
        example = cls.summary[norm].split("e.g. ")[1]
        try:
            eps = float(Fraction(size.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ThreatError(
                f"Cannot read the radius {size!r} of the threat '{name}:{size}'. Write a number "
                f"or a fraction, e.g. {example}."
            ) from None
        return cls(norm, eps, size)

    @property
    def size(self) -> Tensor:
        """The radius as a float64 tensor, one number or ``(n,)``."""
        return torch.as_tensor(self.eps, dtype=torch.float64)

    def select(self, rows: Sequence[int]) -> Ball:
        """The ball for some samples."""
        if self.size.numel() == 1:
            return self
        return Ball(self.norm, self.size[list(rows)], self.text)

    def bind(self, x: Tensor, domain: Domain) -> AllowedSet:
        """The ball around each sample of ``x`` ``(n, *shape)``."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device).expand(len(x)).clone()
        lower, upper = domain.tensors(x)
        return SHAPES[self.norm].around(x, eps, lower, upper)

    def check(self, domain: Domain, shape: tuple[int, ...]) -> None:
        """Refuse a ball that is larger than the domain: almost always a slip of units."""
        size = math.prod(shape)
        whole = {"linf": domain.width, "l0": size, "l1": domain.width * size}
        limit = whole.get(self.norm, domain.width * math.sqrt(size))
        eps = float(torch.as_tensor(self.eps).max())
        if eps > limit * (1 + 1e-6):
            hint = f"Did you mean {self.norm}:{eps:g}/255?" if self.norm == "linf" else ""
            raise ThreatError(
                f"The threat {self.describe()} is larger than the whole input domain "
                f"{domain.describe()}: at most {self.norm}:{limit:g} makes sense here. {hint}"
            )
        if self.norm == "l0" and eps != round(eps):
            raise ThreatError(f"l0 counts coordinates: {eps:g} is not a whole number.")

    def describe(self) -> str:
        """The text that names this threat."""
        if isinstance(self.eps, Tensor) and self.eps.numel() > 1:
            return f"{self.norm}:{self.eps.min().item():g}..{self.eps.max().item():g}"
        return f"{self.norm}:{self.text or f'{float(self.eps):.9g}'}"
