"""The samples to train on: checked, split into training and validation, served by batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.data import ArrayData, Data
from holdfast.defenses._mixing import MixedBatches
from holdfast.defenses.base import Batch
from holdfast.engine.random import Rng
from holdfast.engine.scan import chunks, inside, scan
from holdfast.errors import DataError
from holdfast.model import Model
from holdfast.threat import Domain

_VALIDATION_SHARE, _MOST_VALIDATION = 0.1, 1000
_FEWEST_PER_CLASS = 2
_ON_DEVICE_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of the samples for training and for validation, apart from each other.

    Attributes:
        train: ``(n,)`` int64, ascending.
        validation: ``(m,)`` int64, in an order in which the classes take turns.
        is_carved: Whether the validation samples come from the training data.
    """

    train: Tensor
    validation: Tensor
    is_carved: bool


def stratified(y: Tensor, seed: int, n_validation: int | None = None) -> Split:
    """A tenth of the samples, 1,000 at most, set apart for validation; every class in proportion.

    Raises:
        DataError: where a class has too few samples for both.
    """
    n = len(y)
    wanted = (
        min(_MOST_VALIDATION, round(n * _VALIDATION_SHARE))
        if n_validation is None
        else n_validation
    )
    classes, counts = y.unique(return_counts=True)
    if int(counts.min()) < _FEWEST_PER_CLASS or wanted < len(classes) or wanted >= n:
        raise DataError(
            f"No validation samples can be set apart: {_too_few(classes, counts, wanted)}. Give "
            "more data, or validation data of their own (validation=, --validation)."
        )
    order = torch.randperm(n, generator=_generator(seed, 1))
    turns: list[tuple[float, int]] = []
    for label in classes.tolist():
        members = order[y[order] == label]
        share = max(1, min(len(members) - 1, round(wanted * len(members) / n)))
        turns += [((k + 0.5) / share, i) for k, i in enumerate(members[:share].tolist())]
    validation = torch.tensor([i for _, i in sorted(turns)], dtype=torch.int64)
    is_left = torch.ones(n, dtype=torch.bool)
    is_left[validation] = False
    return Split(is_left.nonzero().squeeze(1), validation, True)


def _too_few(classes: Tensor, counts: Tensor, wanted: int) -> str:
    """Why these samples cannot be divided."""
    if int(counts.min()) < _FEWEST_PER_CLASS:
        rare = int(classes[counts.argmin()])
        have = f"class {rare} has {int(counts.min())} of the {int(counts.sum())} training samples"
        return f"{have}, and needs {_FEWEST_PER_CLASS}: one to train on, one to validate on"
    return (
        f"{max(wanted, 0)} of the {int(counts.sum())} training samples would be for validation; "
        f"{len(classes)} classes need at least {len(classes)}, and some must be left to train on"
    )


def _generator(seed: int, purpose: int) -> torch.Generator:
    key = int(Rng.from_seed(seed).fold(purpose).key)
    return torch.Generator().manual_seed(key % 2**63)


class Store:
    """Labelled samples on the device where they fit there, else fetched as they are needed."""

    def __init__(self, data: Data, model: Model) -> None:
        seen = scan(data, model.domain)
        self.y, self.keys, self.hash = seen.y, seen.keys, seen.hash
        self.data, self.domain, self.device = data, model.domain, model.device
        self.shape = tuple(data.shape)
        self._x: Tensor | None = None
        is_in_memory = isinstance(data, ArrayData)
        if is_in_memory and data.x.numel() * data.x.element_size() <= _ON_DEVICE_BYTES:
            self._x = data.x.to(self.device)
        self._y = self.y.to(self.device)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.y)

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs inside the domain ``(n, *shape)`` and labels, on the device."""
        if self._x is None:
            x, _ = self.data.fetch(rows.tolist())
            x = x.to(self.device, non_blocking=True)
        else:
            x = self._x[rows.to(self.device)]
            x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return inside(x, self.domain), self._y[rows.to(self.device)]


@dataclass(frozen=True)
class Samples:
    """All the data of a training.

    Attributes:
        store: The samples that the split is about.
        split: Which are for what; ``validation`` numbers speak of ``validation_store``.
        validation_store: Where the validation samples lie.
        extra: More (often synthetic) samples, or None.
        extra_share: Part of every batch that is extra.
    """

    store: Store
    split: Split
    validation_store: Store
    extra: Store | None = None
    extra_share: float = 0.0

    @property
    def n_train(self) -> int:
        """Samples to train on, extra ones not counted."""
        return len(self.split.train)

    def validation(self, n: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The first n validation samples in chunks: numbers, inputs and labels."""
        rows = self.split.validation[:n]
        for chunk in chunks(len(rows)):
            picked = rows[chunk.start : chunk.stop]
            yield (picked, *self.validation_store.fetch(picked))

    def order(self, batch_size: int, seed: int) -> MixedBatches:
        """Which samples each batch of each epoch holds."""
        n_extra = 0 if self.extra is None else len(self.extra)
        return MixedBatches(self.n_train, n_extra, batch_size, self.extra_share, seed)

    def batch(self, real: Tensor, extra: Tensor, smoothing: float = 0.0) -> Batch:
        """The samples at these places of the training part, extra ones behind them."""
        rows = self.split.train[real]
        x, y = self.store.fetch(rows)
        ids = rows.to(x.device)
        is_extra = torch.zeros_like(ids, dtype=torch.bool)
        if len(extra) and self.extra is not None:
            x_extra, y_extra = self.extra.fetch(extra)
            more = extra.to(x.device) + len(self.store)
            x, y, ids = torch.cat([x, x_extra]), torch.cat([y, y_extra]), torch.cat([ids, more])
            is_extra = torch.cat([is_extra, torch.ones_like(more, dtype=torch.bool)])
        return Batch(x, y, ids, is_extra, smoothing=smoothing)


def gather(
    train: Data, model: Model, seed: int, validation: Data | None, n_validation: int | None
) -> Samples:
    """Check the data and set the validation samples apart.

    Raises:
        DataError: for NaN, values outside the domain, and data that cannot be split.
    """
    store = Store(train, model)
    if validation is None:
        split = stratified(store.y, seed, n_validation)
        return Samples(store, split, store)
    other = Store(validation, model)
    check_same_kind(store, other, "validation")
    order = stratified_order(other.y, seed)
    limit = _MOST_VALIDATION if n_validation is None else n_validation
    is_new = ~torch.isin(store.keys, other.keys)
    if not bool(is_new.any()):
        raise DataError(
            "Every training sample is in the validation data too: nothing is left to train on. "
            "Leave out the validation data, and a part of the training data is set apart."
        )
    rows = is_new.nonzero().squeeze(1)  # a sample in both would make the validation worthless
    return Samples(store, Split(rows, order[:limit], False), other)


def with_extra(samples: Samples, extra: Data, model: Model, share: float) -> Samples:
    """The samples with extra ones mixed in; those that are validation samples are left out."""
    store = Store(extra, model)
    check_same_kind(samples.store, store, "extra")
    held = samples.validation_store.keys[samples.split.validation]
    if bool(torch.isin(store.keys, held).any()):
        raise DataError(
            "Some extra samples are also validation samples: the validation would be worthless. "
            "Remove them from the extra data, or give validation data of their own."
        )
    return Samples(samples.store, samples.split, samples.validation_store, store, share)


def n_shared(samples: Samples, test: Store) -> int:
    """Test samples that the training or the validation has seen: there must be none."""
    known = torch.cat([samples.store.keys, samples.validation_store.keys])
    if samples.extra is not None:
        known = torch.cat([known, samples.extra.keys])
    return int(torch.isin(test.keys, known).sum())


def stratified_order(y: Tensor, seed: int) -> Tensor:
    """All samples in a random order in which the classes take turns in proportion."""
    order = torch.randperm(len(y), generator=_generator(seed, 2))
    turns: list[tuple[float, int]] = []
    for label in y.unique().tolist():
        members = order[y[order] == label].tolist()
        turns += [((k + 0.5) / len(members), i) for k, i in enumerate(members)]
    return torch.tensor([i for _, i in sorted(turns)], dtype=torch.int64)


def check_same_kind(store: Store, other: Store, name: str) -> None:
    """Refuse samples of another shape than the training data's.

    Raises:
        DataError: with both shapes.
    """
    if other.shape != store.shape:
        raise DataError(
            f"The {name} inputs have shape {other.shape}, the training inputs {store.shape}."
        )


def of_process(rows: Sequence[Tensor], rank: int, n: int) -> tuple[Tensor, ...]:
    """The part of a batch that process ``rank`` of ``n`` works on."""
    return tuple(part[rank::n] for part in rows)


def majority_share(y: Tensor) -> float:
    """The accuracy of always answering with the commonest class."""
    return float(y.unique(return_counts=True)[1].max()) / max(1, len(y))


def domain_width(domain: Domain) -> float:
    """The largest side of the box, never zero."""
    return max(domain.width, math.ulp(1.0))
