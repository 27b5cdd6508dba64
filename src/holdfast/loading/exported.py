"""``torch.export`` programs (``.pt2``) as modules with gradients."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.loading.guard import checked_archive, weights_only
from holdfast.loading.loaded import Loaded, in_batches_of, rows_at_a_time
from holdfast.threat import Access

_MODE_ARGUMENTS = {"train", "training"}


class Program(nn.Module):
    """An exported program that accepts any number of rows.

    Its mode was fixed at the export, so ``train`` and ``eval`` change nothing.

    Attributes:
        shape: Shape of one input, None where an axis is free.
        rows: Rows of every call, where the export fixed them.
    """

    def __init__(
        self,
        program: nn.Module,
        shape: tuple[int | None, ...],
        rows: int | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.program = program
        self.shape = shape
        self.rows = rows
        self.dtype = dtype

    def train(self, mode: bool = True) -> Program:
        """Do nothing: the mode is part of the program."""
        return self

    def forward(self, x: Tensor) -> Any:
        """Scores of ``x`` ``(n, *shape)``."""
        check_shape(tuple(x.shape[1:]), self.shape)
        x = x.to(self.dtype)
        if self.rows is None:
            return self.program(x)
        return in_batches_of(self.rows, self.program, x)


def load_exported(path: Path, device: str | None = None) -> Loaded:
    """The program saved in ``path``.

    Raises:
        ModelError: where it is not one, has several inputs, or was exported in training mode.
    """
    archive = checked_archive(path)
    try:
        with weights_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(archive)
            if device is not None and torch.device(device).type != "cpu":
                program = _moved(program, device)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"torch {torch.__version__} cannot load the program {path} ({first}). Export it again "
            "with this version of torch, or install the version it was made with."
        ) from None
    _check_mode(path, program)
    value = _input(path, program)
    shape = tuple(size if isinstance(size, int) else None for size in value.shape[1:])
    rows = value.shape[0] if isinstance(value.shape[0], int) else None
    module = Program(_runnable(program), shape, rows, value.dtype)
    n = sum(p.numel() for p in module.parameters())
    fixed = f", {rows_at_a_time(rows)}" if rows is not None else ""
    return Loaded(module, f"{path.name} ({n:,} parameters{fixed})", Access.GRADIENTS)


def check_shape(seen: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """Raise :class:`ModelError` where inputs do not have the shape that a file declares."""
    fits = len(seen) == len(expected) and all(
        want is None or have == want for have, want in zip(seen, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ModelError(
            f"The model takes inputs of shape ({wanted}), but the data's inputs have shape {seen}. "
            "Give the data in the shape the model was trained on, channels first."
        )


def _moved(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    """The program on ``device``, with the devices that its operators name."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _runnable(program: torch.export.ExportedProgram) -> nn.Module:
    try:
        return program.module(check_guards=False)
    except TypeError:  # older versions of torch have no guards to leave out
        return program.module()


def _input(path: Path, program: torch.export.ExportedProgram) -> Tensor:
    """The fake tensor that stands for the one input."""
    names = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim < 2:
        raise ModelError(
            f"The program {path} takes {len(nodes)} inputs ({', '.join(n.name for n in nodes)}). "
            "Holdfast audits networks with one input tensor (n, ...): wrap the others as constants."
        )
    if not values[0].dtype.is_floating_point:
        raise ModelError(
            f"The program {path} takes inputs of type {values[0].dtype}. A continuous change needs "
            "floating-point inputs: export the part behind the conversion."
        )
    return values[0]


def _check_mode(path: Path, program: torch.export.ExportedProgram) -> None:
    """Refuse programs with dropout or batch statistics at work."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        arguments = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        arguments |= node.kwargs
        if any(arguments.get(name) is True for name in _MODE_ARGUMENTS) and arguments.get("p") != 0:
            raise ModelError(
                f"The program {path} was exported in training mode ({node.target}): its answers "
                "depend on chance or on the batch. Call model.eval() before torch.export.export."
            )
