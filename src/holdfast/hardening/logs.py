"""The log of a training: JSON lines always, TensorBoard and MLflow where they are installed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast.hardening.checkpoint import explained

NAME = "log.jsonl"


class Log:
    """One line per measurement, in ``log.jsonl``; numbers also go where a board shows them.

    Args:
        directory: Where it lies; None: nothing is written.
    """

    def __init__(self, directory: Path | None) -> None:
        self.path = None if directory is None else directory / NAME
        self._board = None if directory is None else _board(directory)
        self._tracker = None if directory is None else _tracker()
        self._own_run: Any = None
        if directory is not None and self._tracker is not None and not self._tracker.active_run():
            self._own_run = self._tracker.start_run(run_name=directory.name)

    def write(self, what: str, index: int, record: Any) -> None:
        """Append one measurement: a dataclass of plain values."""
        if self.path is None:
            return
        values = asdict(record)
        line = json.dumps({"what": what, "update": index, **values})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise explained(error, self.path) from error
        self._show(what, index, {k: v for k, v in values.items() if isinstance(v, int | float)})

    def _show(self, what: str, index: int, numbers: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{what}/{name}", value, index)
        if self._tracker is not None:
            named = {f"{what}/{name}": float(value) for name, value in numbers.items()}
            self._tracker.log_metrics(named, step=index)

    def cut(self, index: int) -> None:
        """Drop what was written after the checkpoint that the training goes on from."""
        if self.path is None or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _index(line) <= index]
        draft = self.path.with_name(f".{self.path.name}.tmp")
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(self.path)

    def close(self) -> None:
        """Flush the board, and end the run that was begun here."""
        if self._board is not None:
            self._board.close()
        if self._tracker is not None and self._own_run is not None:
            self._tracker.end_run()
            self._own_run = None


def read(directory: Path) -> list[dict[str, Any]]:
    """All measurements of a training, in order."""
    path = directory / NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _index(line) < _TORN]


_TORN = 2**62


def _index(line: str) -> int:
    """The update a line speaks of; a torn line speaks of none."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return _TORN


def _tracker() -> Any:
    """MLflow where it is installed and told where to write (``MLFLOW_TRACKING_URI``).

    Measurements go into the run that is open, else into one of their own.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        return None
    try:
        import mlflow  # type: ignore[import-not-found]
    except ImportError:
        return None
    return mlflow


def _board(directory: Path) -> Any:
    """TensorBoard's writer where the package is installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"))
