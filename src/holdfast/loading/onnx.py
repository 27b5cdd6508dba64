"""ONNX files through onnxruntime: scores only, no gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import ModelError, PrerequisiteError
from holdfast.loading.exported import check_shape
from holdfast.loading.loaded import Loaded, in_batches_of, rows_at_a_time
from holdfast.threat import Access

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_QUIET = 3  # onnxruntime's severity of errors


class OnnxScores:
    """The scores of an ONNX network, for any number of rows."""

    def __init__(self, path: Path, device: str | None = None) -> None:
        self.session = _session(path, device)
        self.input = _one_input(path, self.session)
        self.output = _one_output(path, self.session)
        sizes = [size if isinstance(size, int) else None for size in self.input.shape]
        self.rows, self.shape = sizes[0], tuple(sizes[1:])
        self.dtype = _DTYPES[self.input.type]

    def __call__(self, x: Tensor) -> Tensor:
        """Scores ``(n, k)`` float32 of ``x`` ``(n, *shape)``, on its device."""
        check_shape(tuple(x.shape[1:]), self.shape)
        if self.rows is None:
            return self._run(x)
        return in_batches_of(self.rows, self._run, x)

    def _run(self, x: Tensor) -> Tensor:
        array = np.ascontiguousarray(x.detach().cpu().numpy().astype(self.dtype))
        (scores,) = self.session.run([self.output], {self.input.name: array})
        return torch.from_numpy(np.asarray(scores)).to(x.device).float()


def load_onnx(path: Path, device: str | None = None) -> Loaded:
    """The network in ``path``.

    Raises:
        PrerequisiteError: without onnxruntime.
        ModelError: where it cannot be read, or has not one float input and one score output.
    """
    scores = OnnxScores(path, device)
    fixed = f", {rows_at_a_time(scores.rows)}" if scores.rows is not None else ""
    return Loaded(scores, f"{path.name} (ONNX{fixed})", Access.SCORES)


def _session(path: Path, device: str | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise PrerequisiteError(
            f"{path} is an ONNX file, and onnxruntime is not installed: "
            'pip install "holdfast[onnx]"'
        ) from None
    wanted = ["CPUExecutionProvider"]
    if device is not None and torch.device(device).type == "cuda":
        wanted.insert(0, "CUDAExecutionProvider")
    available = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in wanted if name in available]
        )
    except Exception as error:
        raise ModelError(
            f"onnxruntime cannot load {path} ({_first_line(error)}). Check the file with "
            "onnx.checker.check_model, and export it again."
        ) from None


def _one_input(path: Path, session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) < 2:
        seen = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ModelError(
            f"{path} takes {seen}. Holdfast audits networks with one floating-point input (n, ...)."
        )
    return inputs[0]


def _one_output(path: Path, session: Any) -> str:
    """The scores: the only output, or the only floating-point matrix among several."""
    outputs = session.get_outputs()
    scores = [o for o in outputs if o.type in _DTYPES and len(o.shape) == 2]
    chosen = outputs if len(outputs) == 1 else scores
    if len(chosen) != 1 or not chosen[0].type.startswith("tensor("):
        seen = ", ".join(f"{o.name} {o.type} {o.shape}" for o in outputs)
        raise ModelError(
            f"{path} gives {seen}. Holdfast needs one tensor of scores (n, k): export the network "
            "without its other outputs (for scikit-learn models: options={'zipmap': False})."
        )
    return chosen[0].name


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
