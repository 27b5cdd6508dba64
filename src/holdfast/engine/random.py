"""Counter-based random numbers: every row has its own key, and nothing else matters.

A job's key is derived from (seed, sample, threat, attack, target, restart); an attack folds in the
step and whatever else it wants to tell apart. The numbers are SplitMix64 outputs (Steele, Lea and
Flood, 2014, "Fast splittable pseudorandom number generators") of ``key + index``, computed with
integer arithmetic on the device: the same bits for every batch size, order and device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts signed integers arithmetically."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers; products wrap around."""
    value = (value ^ _shift_right(value, 30)) * _MIX1
    value = (value ^ _shift_right(value, 27)) * _MIX2
    return value ^ _shift_right(value, 31)


def _mix_(value: Tensor) -> Tensor:
    """``_mix`` in place, for many numbers: one buffer beside ``value`` instead of fourteen."""
    shifted = torch.empty_like(value)
    for bits, factor in ((30, _MIX1), (27, _MIX2), (31, 1)):
        torch.bitwise_right_shift(value, bits, out=shifted).bitwise_and_((1 << (64 - bits)) - 1)
        value.bitwise_xor_(shifted)
        if factor != 1:
            value.mul_(factor)
    return value


@dataclass(frozen=True, slots=True)
class Rng:
    """Random numbers of independent rows.

    Attributes:
        key: ``(n,)`` int64, one key per row.
    """

    key: Tensor

    @staticmethod
    def from_seed(seed: int, n_rows: int = 1, device: torch.device | str = "cpu") -> Rng:
        """``n_rows`` different streams of one seed."""
        return Rng(torch.arange(n_rows, dtype=torch.int64, device=device)).fold(seed)

    def fold(self, value: int | Tensor) -> Rng:
        """Streams for another ``value`` (an int, or int64 ``(n,)``): independent of the parents."""
        if isinstance(value, int):
            value = torch.tensor(_signed(value), dtype=torch.int64, device=self.key.device)
        return Rng(_mix(_mix(self.key + _GOLDEN) + _mix(value.to(torch.int64) * _GOLDEN + _MIX1)))

    def skip(self, count: int | Tensor) -> Rng:
        """The same streams, ``count`` elements (an int, or int64 ``(n,)``) further on.

        Cheaper than a fold at every step.
        """
        if isinstance(count, Tensor):
            return Rng(self.key + count * _GOLDEN)  # products wrap around
        return Rng(self.key + _signed(count * _GOLDEN))

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        """64 random bits per element, int64 ``(n, *shape)``."""
        size = math.prod(shape)
        index = torch.arange(1, size + 1, dtype=torch.int64, device=self.key.device) * _GOLDEN
        return _mix_(self.key[:, None] + index).reshape(-1, *shape)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1), ``(n, *shape)``: 24 random bits for float32, 53 for float64."""
        n_bits = 53 if dtype == torch.float64 else 24
        bits = self.bits(shape).bitwise_right_shift_(64 - n_bits).bitwise_and_((1 << n_bits) - 1)
        return bits.to(dtype).mul_(2.0**-n_bits)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, ``(n, *shape)``, by inversion of the distribution function."""
        u = _shift_right(self.bits(shape), 12).to(torch.float64) * 2.0**-52 + 2.0**-53
        return torch.special.ndtri(u).to(dtype)

    def sign(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """-1 or +1 with equal chance, ``(n, *shape)``."""
        return torch.where(self.bits(shape) < 0, -1.0, 1.0).to(dtype)

    def integers(self, high: int | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """Integers in ``[0, high)``, int64 ``(n, *shape)``; ``high`` broadcasts against that."""
        u = self.uniform(shape, torch.float64)
        return (u * high).floor().to(torch.int64)


def _signed(value: int) -> int:
    """``value`` modulo 2**64 as a signed 64-bit integer."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
