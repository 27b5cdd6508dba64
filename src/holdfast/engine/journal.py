"""The journal: the only state of a run, one record per line, append-only.

``journal.jsonl`` starts with a header. Adversarial inputs lie beside it in safetensors files whose
rows are written in place, so that the files are valid at every moment. A line is written only after
the row it speaks of. A last line torn by a crash is dropped when the journal is opened again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from holdfast.errors import JournalError
from holdfast.record import RECORD, AnyRecord, Header

NAME = "journal.jsonl"
_SYNC_SECONDS = 1.0


def journal_path(directory: Path) -> Path:
    """The journal's file in a run's directory."""
    return Path(directory) / NAME


def adversarial_path(directory: Path, threat: str) -> Path:
    """Where the adversarial inputs under ``threat`` (its text) lie."""
    slug = threat.replace(":", "-").replace("/", "_").replace(" ", "")
    return Path(directory) / f"adversarial-{slug}.safetensors"


def read(directory: Path) -> list[AnyRecord]:
    """All records of a run.

    Raises:
        JournalError: where there is no journal, or a line other than the last is damaged.
    """
    return _read(journal_path(directory))[0]


def _read(path: Path) -> tuple[list[AnyRecord], int]:
    """The records and the length in bytes of the intact part."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise JournalError(
            f"There is no run in {path.parent}: {path.name} is missing. Give the directory that "
            "'holdfast audit' wrote (its --out)."
        ) from None
    except OSError as error:
        raise JournalError(f"Cannot read {path}: {error.strerror}.") from None
    whole = data.rfind(b"\n") + 1
    records: list[AnyRecord] = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            records.append(RECORD.validate_json(line))
        except ValidationError:
            raise JournalError(
                f"{path}, line {number} is damaged: {line[:80]!r}. Restore the file from a copy, "
                "or start the run anew in another directory."
            ) from None
    if not records or not isinstance(records[0], Header):
        if whole == 0:
            return [], 0
        raise JournalError(f"{path} does not begin with a header: it is not a Holdfast journal.")
    return records, whole


def peek(directory: Path) -> Header | None:
    """The header of the run in ``directory``, where there is one to read."""
    try:
        with journal_path(directory).open("rb") as file:
            first = RECORD.validate_json(file.readline())
    except (OSError, ValidationError):
        return None
    return first if isinstance(first, Header) else None


class Journal:
    """A run's directory, open for writing by this process alone.

    Raises:
        JournalError: where the directory cannot be written, or another run is at work in it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.path = journal_path(self.directory)
        self._synced = 0.0
        self._files: dict[Path, RowFile] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab")
        except OSError as error:
            raise storage_error(error, self.directory) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(
                f"Another run is writing to {self.directory}. Wait for it, or give another --out."
            ) from None

    def records(self) -> list[AnyRecord]:
        """What an earlier sitting left; a torn last line is cut off."""
        if self.path.stat().st_size == 0:
            return []
        records, whole = _read(self.path)
        self._file.truncate(whole)
        return records

    def append(self, records: Iterable[AnyRecord]) -> None:
        """Write records, one line each, and hand them to the operating system at once."""
        lines = b"".join(RECORD.dump_json(record) + b"\n" for record in records)
        if not lines:
            return
        try:
            self._file.write(lines)
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise storage_error(error, self.directory) from None

    def rows(self, path: Path, name: str, n: int, shape: tuple[int, ...]) -> RowFile:
        """A file of ``n`` rows beside the journal, created when it is first asked for."""
        if path not in self._files:
            try:
                self._files[path] = RowFile(path, name, n, shape)
            except OSError as error:
                raise storage_error(error, self.directory) from None
        return self._files[path]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flush everything to the disk."""
        for rows in self._files.values():
            rows.close()
        self._files.clear()
        try:
            self._file.flush()
            self._sync()
        except OSError as error:
            raise storage_error(error, self.directory) from None
        finally:
            self._file.close()


class RowFile:
    """One float32 tensor ``(n, *shape)`` in a safetensors file whose rows are written in place.

    The file has its full size from the start (sparse where the file system can) and rows that were
    never written are zero, so that it is valid after every write.
    """

    def __init__(self, path: Path, name: str, n: int, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self._row_bytes = 4 * math.prod(shape)
        size = n * self._row_bytes
        header = {name: {"dtype": "F32", "shape": [n, *shape], "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self._fd).st_size != self._start + size:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, len(text).to_bytes(8, "little") + text, 0)
            os.ftruncate(self._fd, self._start + size)

    def write(self, rows: Sequence[int], values: Tensor) -> None:
        """Write ``values`` ``(m, *shape)`` to ``rows``.

        Raises:
            JournalError: where the disk is full or cannot be written.
        """
        data = values.detach().to("cpu", torch.float32).contiguous().numpy()
        for row, value in zip(rows, data, strict=True):
            try:
                written = os.pwrite(self._fd, value.tobytes(), self._offset(row))
            except OSError as error:
                raise storage_error(error, self.path.parent) from None
            if written != self._row_bytes:
                raise storage_error(OSError(errno.ENOSPC, "no space left"), self.path.parent)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The values of ``rows``, ``(m, *shape)`` float32."""
        parts = [os.pread(self._fd, self._row_bytes, self._offset(row)) for row in rows]
        data = np.frombuffer(b"".join(parts), np.float32).copy()
        return torch.from_numpy(data).reshape(-1, *self.shape)

    def _offset(self, row: int) -> int:
        return self._start + row * self._row_bytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def storage_error(error: OSError, directory: Path) -> JournalError:
    """What went wrong on the disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return JournalError(
            f"The disk of {directory} is full ({error.strerror}). What was written before is "
            "intact: free some space and resume with 'holdfast audit --resume DIR'."
        )
    return JournalError(f"Cannot write to {directory}: {error.strerror or error}.")


def header_of(records: Sequence[Any]) -> Header:
    """The header of some records.

    Raises:
        JournalError: where there is none.
    """
    if not records or not isinstance(records[0], Header):
        raise JournalError("The journal is empty: the run ended before it began.")
    return records[0]
