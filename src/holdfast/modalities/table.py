"""Tables with a label column: CSV, TSV and Parquet, through pandas."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdfast.data import ArrayData, Data
from holdfast.errors import DataError, PrerequisiteError
from holdfast.modalities._labels import class_numbers
from holdfast.modalities._source import Source

if TYPE_CHECKING:
    from pandas import DataFrame

_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
_SEPARATORS = ",;\t|"
_SHOWN = 8


def load_table(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """A row per sample: every column but ``label`` is a feature ``(n, d)``.

    Raises:
        DataError: without a label column, for texts or missing values among the features.
        PrerequisiteError: without pandas (and pyarrow for Parquet).
    """
    path = Path(spec).expanduser()
    frame = _read(path)
    names = [str(name) for name in frame.columns]
    frame.columns = names
    if label is None or label not in names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        said = "no label column was named" if label is None else f"there is no column {label!r}"
        raise DataError(f"{path}: {said}. Name it with --label. Columns: {shown}")
    if frame.empty:
        raise DataError(f"{path} has no rows.")
    _check_label(frame[label], path, label)
    y, class_names, note = class_numbers(frame[label].to_numpy(), str(path))
    index = [name for name in names if name.startswith("Unnamed:")]
    x = _features(frame.drop(columns=[label, *index]), path)
    dropped = f"column {', '.join(index)} without a name left out" if index else ""
    notes = f"{path.name}: {x.shape[1]} features, label {label!r}"
    return ArrayData(x, y, class_names, "; ".join(t for t in (notes, note, dropped) if t))


def _read(path: Path) -> DataFrame:
    try:
        import pandas as pd
    except ImportError:
        raise _missing(path, "pandas") from None
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            return pd.read_parquet(path)
        header = _first_line(path)
        separator = max(_SEPARATORS, key=header.count)
        _check_header(path, header.strip().split(separator))
        return pd.read_csv(path, sep=separator, low_memory=False)
    except ImportError:
        raise _missing(path, "pyarrow") from None
    except DataError:
        raise
    except Exception as error:  # every engine of pandas has its own errors
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"Cannot read the table {path} ({first}). Give CSV with one line of column names, or "
            "Parquet."
        ) from None


def _first_line(path: Path) -> str:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        return file.readline()


def _check_header(path: Path, names: list[str]) -> None:
    """A first line of numbers is data, unless it counts the columns."""
    try:
        numbers = [float(name.strip('"')) for name in names]
    except ValueError:
        return
    if numbers != [float(i) for i in range(len(numbers))]:
        raise DataError(
            f"{path} has no line of column names: its first line is numbers "
            f"({', '.join(names[:4])}, ...). Add one, so that the label can be named."
        )


def _check_label(column: Any, path: Path, label: str) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if missing.size:
        raise DataError(
            f"{path}: the label {label!r} is missing in {missing.size} rows, first in row "
            f"{missing[0]}. Drop those rows."
        )


def _features(frame: DataFrame, path: Path) -> torch.Tensor:
    if not len(frame.columns):
        raise DataError(f"{path} has no column beside the label: there is nothing to attack.")
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "iufb":
            raise DataError(
                f"{path}: the column {name!r} holds {column.iloc[0]!r}, which is not a number. "
                "Encode it as the model expects (e.g. one column per value), or drop it."
            )
        missing = np.flatnonzero(column.isna().to_numpy())
        if missing.size:
            raise DataError(
                f"{path}: {missing.size} values are missing in the column {name!r}, first in row "
                f"{missing[0]}. Fill or drop them."
            )
    return torch.from_numpy(np.ascontiguousarray(frame.to_numpy(dtype=np.float32)))


def _missing(path: Path, package: str) -> PrerequisiteError:
    return PrerequisiteError(
        f'{path} is a table, and {package} is not installed: pip install "holdfast[data]"'
    )


SOURCE = Source(
    name="table",
    summary="table.csv or table.parquet, numbers only, with --label COLUMN",
    accepts=lambda spec: spec.lower().endswith(_ENDINGS) and Path(spec).expanduser().is_file(),
    load=load_table,
)
