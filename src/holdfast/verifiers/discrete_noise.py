"""Noise for discrete data: certificates that count changed elements (l0).

A smoothed classifier votes over noisy copies of its input. Where noise replaces whole elements, a
bound of the votes at ``x`` bounds those at every ``x'`` that differs in ``r`` elements: the copies
that tell the two apart are few. By the lemma of Neyman and Pearson the least probability that the
top class can have at ``x'``, given at least ``p`` at ``x``, is found by filling up with the copies
that are likeliest under ``x`` compared with ``x'``. Here those fall into a handful of regions whose
probabilities are known in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.errors import DataError, PlanError

SLACK = 1e-9
"""Over 1/2, for rounding of the regions' probabilities."""


class DiscreteNoise(ABC):
    """Noise that replaces elements; its certificates count them."""

    norm: ClassVar[str] = "l0"

    @abstractmethod
    def noisy(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Noisy copies ``(n, *shape)`` of one input ``(*shape)``.

        Raises:
            DataError: the input is not of the kind that this noise is for.
        """

    @abstractmethod
    def covers(self, p: float, x: Tensor, r: int) -> bool:
        """Whether the top class, of probability >= ``p`` at ``x``, stays so after ``r`` changes."""

    def radius(self, p: float, x: Tensor) -> int:
        """The largest number of changed elements that is covered, by doubling and bisection."""
        if p <= 0.5:
            return 0
        most = self.n_elements(x)
        high = 1
        while high <= most and self.covers(p, x, high):
            high *= 2
        low, high = high // 2, min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.covers(p, x, middle) else (low, middle)
        return low

    def n_elements(self, x: Tensor) -> int:
        """How many elements may change."""
        return x.numel()


@final
@dataclass(frozen=True, slots=True)
class Ablation(DiscreteNoise):
    """All but ``keep`` random elements are hidden (Levine and Feizi, 2020, arXiv:1911.09272).

    Two inputs that differ in ``r`` of ``d`` elements look alike unless one of these is kept, which
    has probability ``1 - C(d - r, keep) / C(d, keep)`` (theorem 1).

    Attributes:
        keep: Number of elements that are shown.
        fill: What stands for a hidden element.
        whole_pixels: Hide all channels of a pixel together and count pixels; for inputs
            ``(channels, height, width)``.
    """

    keep: int
    fill: float = 0.0
    whole_pixels: bool = True

    def __post_init__(self) -> None:
        """Something has to be shown."""
        if self.keep < 1:
            raise PlanError(f"keep must be at least 1, got {self.keep}")

    def n_elements(self, x: Tensor) -> int:
        """Pixels, or elements."""
        return x[0].numel() if self._pixels(x) else x.numel()

    def noisy(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """The same number of elements is shown in every copy."""
        size = self.n_elements(x)
        if self.keep > size:
            raise PlanError(f"keep is {self.keep}, but an input has {size} elements")
        order = torch.rand(n, size, generator=generator, device=x.device).argsort(1)
        shown = torch.zeros(n, size, dtype=torch.bool, device=x.device)
        shown.scatter_(1, order[:, : self.keep], True)
        mask = shown.reshape(n, *((1, *x.shape[1:]) if self._pixels(x) else x.shape))
        return torch.where(mask, x, self.fill)

    def covers(self, p: float, x: Tensor, r: int) -> bool:
        """``p`` less the probability of showing a change is above 1/2, in exact numbers."""
        size = self.n_elements(x)
        if r > size - self.keep:
            return False
        alike = Fraction(math.comb(size - r, self.keep), math.comb(size, self.keep))
        return Fraction(p) - (1 - alike) > Fraction(1, 2)

    def _pixels(self, x: Tensor) -> bool:
        return self.whole_pixels and x.ndim == 3


@final
@dataclass(frozen=True, slots=True)
class Categories(DiscreteNoise):
    """Each element becomes any other of its values with some probability.

    The noise of Lee et al. (2019, arXiv:1906.04948).

    Attributes:
        change: Probability that an element is replaced, by any other value equally likely.
        values: All values that an element may have, ascending, for example ``range(256)`` over 255.
    """

    change: float
    values: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """An element must be likelier to stay than to become any one other value."""
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise PlanError("values must be at least two different numbers, ascending")
        others = len(self.values) - 1
        if not 0 < self.change < others / (others + 1):
            raise PlanError(
                f"change must lie between 0 and {others / (others + 1):g} for {others + 1} values, "
                f"got {self.change}"
            )

    def noisy(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Indices of values, moved on by a random number."""
        values = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        index = _nearest(x, values)
        shape, place = (n, *x.shape), {"generator": generator, "device": x.device}
        moved = torch.randint(1, len(values), shape, **place)
        is_moved = torch.rand(shape, **place) < self.change
        return values[(index + moved * is_moved) % len(values)]

    def covers(self, p: float, x: Tensor, r: int) -> bool:
        """Regions by how many more of the changed elements show ``x`` than ``x'``."""
        other = self.change / (len(self.values) - 1)
        each = np.array([other, 1 - self.change - other, 1 - self.change])
        each[1] = max(0.0, 1.0 - each[0] - each[2])
        here = _repeated(each, r)
        return _least(p, here, here[::-1]) > 0.5 + SLACK


@final
@dataclass(frozen=True, slots=True)
class Flips(DiscreteNoise):
    """Zeros become ones and ones zeros, each with its own probability: for sparse binary data.

    Keeping ``add`` small leaves sparse inputs sparse while many ones may vanish (Bojchevski et al.,
    2020, arXiv:2008.12952, sections 4 and 5).

    Attributes:
        add: Probability that a 0 becomes 1.
        delete: Probability that a 1 becomes 0.
    """

    add: float
    delete: float

    def __post_init__(self) -> None:
        """Noisy copies must still tell the input."""
        if not (self.add > 0 and self.delete > 0 and self.add + self.delete < 1):
            raise PlanError(
                f"add and delete must be positive and sum up to less than 1, got {self.add} and "
                f"{self.delete}"
            )

    def noisy(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Each element on its own."""
        values = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        _nearest(x, values)
        drawn = torch.rand((n, *x.shape), generator=generator, device=x.device)
        flips = drawn < torch.where(x > 0.5, self.delete, self.add)
        return torch.where(flips, 1 - x, x)

    def covers(self, p: float, x: Tensor, r: int) -> bool:
        """In the worst of all ways to make ``r`` changes of ones and of zeros."""
        ones = int((x > 0.5).sum())
        splits = range(max(0, r - (x.numel() - ones)), min(r, ones) + 1)
        return all(self.covers_changes(p, r - deleted, deleted) for deleted in splits)

    def covers_changes(self, p: float, added: int, deleted: int) -> bool:
        """The same for given numbers of added and of deleted ones.

        All copies with as many changed elements as in ``x`` are equally likely under ``x``
        compared with ``x'``, and the more there are, the likelier.
        """
        stay = [np.array([q, 1 - q]) for q in (self.delete, self.add)]
        become = [np.array([1 - q, q]) for q in (self.add, self.delete)]
        here = np.convolve(_repeated(stay[0], deleted), _repeated(stay[1], added))
        there = np.convolve(_repeated(become[0], deleted), _repeated(become[1], added))
        return _least(p, here, there) > 0.5 + SLACK


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Indices of the values that elements have.

    Raises:
        DataError: an element has none of them.
    """
    middles = (values[1:] + values[:-1]) / 2
    index = torch.bucketize(x.contiguous(), middles)
    odd = (values[index] - x).abs() > 1e-4 * (values[1:] - values[:-1]).min()
    if bool(odd.any()):
        raise DataError(
            f"an input has the value {float(x[odd][0]):.6g}, which is not among the "
            f"{len(values)} values that this noise is for"
        )
    return index


def _repeated(each: NDArray[np.float64], r: int) -> NDArray[np.float64]:
    """Distribution of the sum of ``r`` independent numbers with distribution ``each``."""
    total = np.ones(1)
    for _ in range(r):
        total = np.convolve(total, each)
    return total


def _least(p: float, here: NDArray[np.float64], there: NDArray[np.float64]) -> float:
    """Least probability at ``x'`` of a set that has ``p`` at ``x``: the last regions go first."""
    left, least = p, 0.0
    for a, b in zip(here[::-1], there[::-1], strict=True):
        if left <= a:
            return least + (b * left / a if a > 0 else 0.0)
        left, least = left - a, least + b
    return least
