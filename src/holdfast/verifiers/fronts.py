"""Rows of coefficients on their way back: windows, whole maps, and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from holdfast.graphs.operator import Box, Lines
from holdfast.graphs.window import Window
from holdfast.verifiers.regions import BoxRegion


class Dense(NamedTuple):
    """Rows of coefficients over a whole node.

    Attributes:
        A: Coefficients ``(r, k, *shape)``.
        sample: Sample of every row ``(r,)``.
        only: The sample of all rows where they share one.
    """

    A: Tensor
    sample: Tensor
    only: int | None

    def gather(self, full: Tensor) -> Tensor:
        """The part of ``full (n, ...)`` that belongs to each row, or to all of them."""
        return full[self.sample] if self.only is None else full[self.only : self.only + 1]

    def merged(self) -> Tensor:
        """Coefficients ``(1, r k, *shape)`` where all rows share a sample, else as they are."""
        return self.A if self.only is None else self.A.flatten(0, 1).unsqueeze(0)

    def split(self, merged: Tensor) -> Tensor:
        """Undoes ``merged`` for anything with its leading axes: to ``(r, k, ...)``."""
        return merged.reshape(*self.A.shape[:2], *merged.shape[2:])

    def rows(self, index: Tensor) -> Dense:
        """The rows at ``index``."""
        return Dense(self.A[index], self.sample[index], self.only)

    def minimum(self, box: Box) -> Tensor:
        """Least values ``(r, k)`` over the boxes of all samples."""
        region = BoxRegion(self.gather(box.lower), self.gather(box.upper))
        return self.split(region.minimum(self.merged()))


Rows = Window | Dense


@final
@dataclass(slots=True)
class Front:
    """Rows on their way back.

    Attributes:
        pending: Coefficients by node.
        which: Position of every row among the elements asked for ``(r,)``.
        sample: Sample of every row ``(r,)``.
        constant: ``(r, k)``.
        error: Rounding errors so far ``(r, k)``.
        mirrored: Whether the rows still stand for both signs.
        side: The only sign sought of every row ``(r,)``, or None for both.
    """

    pending: dict[int, Rows]
    which: Tensor
    sample: Tensor
    constant: Tensor
    error: Tensor
    mirrored: bool = True
    side: Tensor | None = None

    def rows(self, index: Tensor) -> Front:
        """The rows at ``index``."""
        return replace(
            self,
            pending={i: p.rows(index) for i, p in self.pending.items()},
            which=self.which[index],
            sample=self.sample[index],
            constant=self.constant[index],
            error=self.error[index],
            side=None if self.side is None else self.side[index],
        )

    def turned(self, side: Tensor) -> Front:
        """The rows times signs of their own ``(r,)``, and never doubled."""
        pending = {
            i: p._replace(A=p.A * side.reshape(-1, *[1] * (p.A.dim() - 1)))
            for i, p in self.pending.items()
        }
        constant = self.constant * side[:, None]
        return replace(self, pending=pending, constant=constant, mirrored=False, side=side)

    def double(self) -> None:
        """From here on the two signs differ."""
        self.pending = {i: p._replace(A=torch.cat([p.A, -p.A], 1)) for i, p in self.pending.items()}
        self.constant = torch.cat([self.constant, -self.constant], 1)
        self.error, self.mirrored = torch.cat([self.error] * 2, 1), False


def merged(rows: Rows) -> Tensor:
    """Coefficients as ``pull`` takes them, with rows that share a sample side by side."""
    return rows.A if isinstance(rows, Window) else rows.merged()


def lines_of(rows: Rows, lines: Lines) -> Lines:
    """Lines of an activation for each row, ``(r or 1, 1, *shape)``."""
    given = [t for t in lines if t is not None]
    if isinstance(rows, Window):
        found = iter(rows.gather_all(*(t.squeeze(1) for t in given)))
        return Lines(*(None if t is None else next(found).unsqueeze(1) for t in lines))  # type: ignore[arg-type]
    return Lines(*(None if t is None else rows.gather(t) for t in lines))  # type: ignore[arg-type]


def spread_out(window: Window, shape: tuple[int, ...]) -> Dense:
    """The same coefficients over the whole node."""
    return Dense(window.spread(shape), window.sample, None)


def total(a: Rows, b: Rows, shape: tuple[int, ...]) -> Rows:
    """The sum of two parts; a window where both are, at one shift."""
    if isinstance(a, Window) and isinstance(b, Window):
        joined = a.joined(b)
        if joined is not None:
            return joined
    if isinstance(a, Window):
        a, b = b, a
    if isinstance(a, Window):
        a = spread_out(a, shape)
    if isinstance(b, Window):
        return a._replace(A=b.added(a.A))
    return Dense(a.A + b.A, a.sample, a.only if a.only is not None else b.only)
