"""Data as the engine sees it: samples fetched by number, inputs in the model's domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        if self.x.shape[:1] == (0,):
            raise DataError("There are no samples: x has length 0.")
        if self.x.ndim < 2 or self.x.shape[:1] != self.y.shape:
            raise DataError(
                f"Inputs {tuple(self.x.shape)} and labels {tuple(self.y.shape)} do not fit: give "
                "x as (n, ...) and y as (n,)."
            )
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
        pairs = [self._pair(int(i)) for i in indices]
        x = _inputs([x for x, _ in pairs])
        y = torch.tensor([y for _, y in pairs], dtype=torch.int64)
        return (x.float() / 255 if x.dtype == torch.uint8 else x.float()), y

    def _pair(self, index: int) -> tuple[Any, int]:
        sample = self.dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) < 2:
            raise DataError(
                f"Sample {index} of {self.description} is no pair (x, y), but {_seen(sample)}. "
                "Wrap it in a Dataset that returns pairs."
            )
        return sample[0], _class_number(sample[1], index)


def _class_number(label: Any, index: int) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number != label:
        raise DataError(
            f"The label of sample {index} is {label!r}. Labels of a Dataset are class numbers, "
            "counted from 0."
        )
    return number


def _input(value: Any) -> Tensor:
    """One input; a PIL image with its channels first, as torchvision has it."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if _is_picture(value):
        pixels = np.array(value.convert("RGB") if value.mode == "P" else value)
        return torch.as_tensor(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    array = np.asarray(value)
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def _is_picture(value: Any) -> bool:
    return hasattr(value, "getbands")  # PIL's images


def _inputs(values: Any) -> Tensor:
    """Many inputs ``(n, ...)``: a tensor, an array, a table, or a list of either or of images.

    Raises:
        DataError: where they are no numbers, or differ in shape.
    """
    try:
        first = next(iter(values), None) if isinstance(values, (list, tuple)) else None
        if isinstance(first, Tensor) or _is_picture(first):
            return torch.stack([_input(value) for value in values])
        return _input(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The inputs cannot be read as numbers of one shape ({error}). Give a tensor or an "
            "array (n, ...)."
        ) from None


def as_inputs(given: Any) -> Tensor:
    """Inputs ``(n, *shape)`` as a tensor: tensors where they are, all else on the CPU.

    Raises:
        DataError: where they are no numbers, differ in shape, or are none at all.
    """
    x = given if isinstance(given, Tensor) else _inputs(given)
    if not x.shape[:1].numel():
        raise DataError("There are no samples: x has length 0.")
    return x


def as_labels(given: Any, name: str = "y") -> Tensor:
    """Class numbers ``(n,)`` as a tensor, on its device; of one-hot rows too.

    Raises:
        DataError: for texts, fractions and other shapes; ``name`` says whose labels they are.
    """
    numbers = _class_numbers(given, name)[0]
    return numbers.to(given.device) if isinstance(given, Tensor) else numbers


def _class_numbers(given: Any, name: str) -> tuple[Tensor, tuple[str, ...], str]:
    from holdfast.modalities._labels import class_numbers

    labels = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if labels.dtype.kind not in "iufb":
        raise DataError(
            f"The labels of {name} are {labels.flatten()[:3].tolist()}, ...: give class numbers, "
            "counted from 0 in the order of the model's outputs."
        )
    return class_numbers(labels, name)


def _seen(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value))}"
    return f"a {type(value).__name__}"


def as_data(given: Any, n: int | None = None) -> Data:
    """What a Python user gives, as data.

    ``given`` is data already, a path or name (see :func:`holdfast.modalities.load`), a pair
    ``(x, y)`` of tensors or arrays, a ``Dataset`` or a ``DataLoader``. Labels of a pair may
    also be one-hot.

    Raises:
        DataError: for anything else, or where x and y do not fit.
    """
    data = _as_data(given)
    if not len(data):
        raise DataError(f"There are no samples: {data.description} is empty.")
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
        return _paired(*given)
    is_sequence = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    if is_sequence and not isinstance(given, (Tensor, np.ndarray, Mapping)):
        return DatasetData(given)
    raise DataError(
        f"Cannot use {_seen(given)} as data. Give a pair (x, y) of tensors or arrays, a "
        "Dataset, a DataLoader, or the path or name of data."
    )


def _paired(x: Any, y: Any, description: str = "arrays in memory") -> Data:
    numbers, names, note = _class_numbers(y, description)
    return ArrayData(_inputs(x), numbers, names, f"{description}; {note}" if note else description)


def _from_loader(loader: Any) -> Data:
    """A map-style loader's own dataset when it keeps its order, else the batches it yields."""
    sampler = getattr(loader, "sampler", None)
    plain = isinstance(sampler, torch.utils.data.SequentialSampler)
    default = torch.utils.data.default_collate
    if plain and loader.collate_fn is default and hasattr(loader.dataset, "__getitem__"):
        return DatasetData(loader.dataset, "a DataLoader's dataset")
    batches = list(loader)
    for batch in batches[:1]:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                f"The first batch of the DataLoader is no pair (x, y), but {_seen(batch)}. Give a "
                "DataLoader, or a Dataset, of pairs."
            )
    x = torch.cat([_inputs(batch[0]) for batch in batches])
    y = torch.cat([as_labels(batch[1], "the DataLoader") for batch in batches])
    return _paired(x, y, "the batches of a DataLoader")
