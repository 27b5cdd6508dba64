"""Data as the engine sees it: samples fetched by number, inputs in the model's domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataError


@runtime_checkable
class Data(Protocol):
    """Labelled samples. ``fetch`` must return the same values whenever it is called."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order; empty where unknown."""
        ...

    @property
    def description(self) -> str:
        """What this is, in one line."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs ``(n, *shape)`` float32 and labels ``(n,)`` int64, on the CPU."""
        ...


@final
@dataclass(frozen=True)
class ArrayData:
    """Samples in memory: tensors or arrays ``x`` ``(n, *shape)`` and ``y`` ``(n,)``."""

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...] = ()
    description: str = "arrays in memory"
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the shapes against each other."""
        if len(self.x) != len(self.y) or self.y.ndim != 1 or self.x.ndim < 2:
            raise DataError(
                f"Inputs {tuple(self.x.shape)} and labels {tuple(self.y.shape)} do not fit: give "
                "x as (n, ...) and y as (n,)."
            )
        if len(self.x) == 0:
            raise DataError("There are no samples: x has length 0.")
        object.__setattr__(self, "shape", tuple(self.x.shape[1:]))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples ``indices``; 8-bit inputs are scaled to [0, 1] here, not before."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        x = self.x[rows]
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return x, self.y[rows].long()


@final
@dataclass(frozen=True)
class FirstN:
    """The first ``n`` samples of other data."""

    data: Data
    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.data.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.class_names

    @property
    def description(self) -> str:
        """What this is, in one line."""
        return f"first {len(self)} of {self.data.description}"

    def __len__(self) -> int:
        """Number of samples."""
        return min(self.n, len(self.data))

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples ``indices``."""
        return self.data.fetch(indices)


@final
@dataclass(frozen=True)
class DatasetData:
    """A ``torch.utils.data.Dataset`` of ``(x, y)`` pairs, read as it is needed."""

    dataset: Any
    description: str = "a Dataset"
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first input."""
        return tuple(self.fetch([0])[0].shape[1:])

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The samples ``indices``, stacked."""
        pairs = [self.dataset[int(i)] for i in indices]
        x = torch.stack([torch.as_tensor(np.asarray(p[0])) for p in pairs])
        y = torch.tensor([int(p[1]) for p in pairs])
        return (x.float() / 255 if x.dtype == torch.uint8 else x.float()), y.long()


def as_data(given: Any, n: int | None = None) -> Data:
    """What a Python user gives, as data.

    ``given`` is data already, a path or name (see :func:`holdfast.modalities.load`), a pair
    ``(x, y)`` of tensors or arrays, a ``Dataset`` or a ``DataLoader``.

    Raises:
        DataError: for anything else, or where x and y do not fit.
    """
    data = _as_data(given)
    return FirstN(data, n) if n is not None and n < len(data) else data


def _as_data(given: Any) -> Data:
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        from holdfast.modalities import load

        return load(str(given))
    if isinstance(given, Data):
        return given
    if isinstance(given, torch.utils.data.DataLoader):
        return _from_loader(given)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        x, y = (torch.as_tensor(np.asarray(v) if not isinstance(v, Tensor) else v) for v in given)
        return ArrayData(x.detach().cpu(), y.detach().cpu().squeeze(-1) if y.ndim == 2 else y.cpu())
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return DatasetData(given)
    raise DataError(
        f"Cannot use {type(given).__name__} as data. Give a pair (x, y) of tensors or arrays, a "
        "Dataset, a DataLoader, or the path or name of data."
    )


def _from_loader(loader: Any) -> Data:
    """A map-style loader's own dataset when it keeps its order, else the batches it yields."""
    sampler = getattr(loader, "sampler", None)
    plain = isinstance(sampler, torch.utils.data.SequentialSampler)
    default = torch.utils.data.default_collate
    if plain and loader.collate_fn is default and hasattr(loader.dataset, "__getitem__"):
        return DatasetData(loader.dataset, "a DataLoader's dataset")
    batches = [(x, y) for x, y, *_ in loader]
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    return ArrayData(x.cpu(), y.cpu(), description="the batches of a DataLoader")
