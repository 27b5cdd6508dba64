"""Batches of real and extra (unlabelled or generated) samples in a fixed proportion.

Extra data raises robust accuracy more than it raises clean accuracy (Carmon et al., 2019,
arXiv:1905.13736; Gowal et al., 2021, arXiv:2110.09468; Sehwag et al., 2022, arXiv:2104.09425), as
long as every batch keeps its share of real samples. It is a matter of the data, not of the loss:
any recipe runs on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.errors import PlanError

_REAL, _EXTRA = 0, 1


@final
@dataclass(frozen=True, slots=True)
class MixedBatches:
    """Which samples each batch of an epoch holds: a pure function of the seed and the epoch.

    An epoch is one pass over the real samples. Extra samples go on where the last epoch ended: none
    is seen again before all were seen. Nothing is remembered, so any epoch can be asked for first.

    Attributes:
        n_real: Number of real samples.
        n_extra: Number of extra samples.
        batch_size: Samples per batch, both kinds together.
        share: Part of each batch that is extra: 0 (none) to below 1; 0.5 as in PORT, 0.7 to 0.8
            with many good generated samples.
        seed: Of the order.
    """

    n_real: int
    n_extra: int
    batch_size: int
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse proportions that no batch can have."""
        if not 0 <= self.share < 1:
            raise PlanError(f"The share of extra data is {self.share}; give 0 <= share < 1.")
        if self.share > 0 and self.n_extra < 1:
            raise PlanError(f"The share of extra data is {self.share}, but there is none: give 0.")
        if self.n_real < 1 or self.batch_size < 1 or self.n_real_per_batch < 1:
            raise PlanError(
                f"A batch of {self.batch_size} with {self.share:.0%} extra data holds no real "
                f"sample (there are {self.n_real}). Use larger batches or a smaller share."
            )

    @property
    def n_real_per_batch(self) -> int:
        """Real samples in each full batch."""
        return self.batch_size - round(self.share * self.batch_size)

    @property
    def n_batches(self) -> int:
        """Batches per epoch; the last one may be smaller, or larger by one."""
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        """Real samples in each batch; never a single one alone, which batch norm cannot take."""
        full, rest = divmod(self.n_real, self.n_real_per_batch)
        if rest == 1 and full:
            return [self.n_real_per_batch] * (full - 1) + [self.n_real_per_batch + 1]
        return [self.n_real_per_batch] * full + [rest] * bool(rest)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions of the real and of the extra samples of every batch, int64 ``(r,), (e,)``."""
        order = self._permutation(_REAL, number, self.n_real)
        per_batch = self.batch_size - self.n_real_per_batch
        per_epoch = self._n_extra_for(self.n_real)
        start = number * per_epoch
        for k, real in enumerate(order.split(self._sizes())):
            first = start + k * per_batch
            yield real, self._extra(first, first + self._n_extra_for(len(real)))

    def _n_extra_for(self, n_real: int) -> int:
        """Extra samples that belong to so many real ones."""
        full, rest = divmod(n_real, self.n_real_per_batch)
        per_batch = self.batch_size - self.n_real_per_batch
        return full * per_batch + round(rest * per_batch / self.n_real_per_batch)

    def _extra(self, start: int, stop: int) -> Tensor:
        """Places ``start`` to ``stop`` of the endless walk through the extra samples."""
        if stop <= start:
            return torch.empty(0, dtype=torch.int64)
        rounds = range(start // self.n_extra, (stop - 1) // self.n_extra + 1)
        walk = torch.cat([self._permutation(_EXTRA, r, self.n_extra) for r in rounds])
        offset = rounds.start * self.n_extra
        return walk[start - offset : stop - offset]

    def _permutation(self, kind: int, number: int, n: int) -> Tensor:
        key = Rng.from_seed(self.seed).fold(kind).fold(number).key
        return torch.randperm(n, generator=torch.Generator().manual_seed(int(key) % 2**63))
