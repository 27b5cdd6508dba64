"""Changes of shape that keep the order of elements."""
# ruff: noqa: N803 - A, C, D and W are the matrices of the literature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from holdfast.graphs.builder import Call, Moved, Ref, aten, batch_anywhere, onnx
from holdfast.graphs.operator import Affine, Box, Pulled


@final
@dataclass(frozen=True, slots=True)
class Reshape(Affine):
    """The same elements in another shape (without the batch axis)."""

    shape: tuple[int, ...]
    is_diagonal: ClassVar[bool] = True
    rounds: ClassVar[bool] = False

    def run(self, *xs: Tensor) -> Tensor:
        """``(n, *in) -> (n, *shape)``."""
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def magnitude(self, *boxes: Box) -> None:
        """Nothing is computed."""
        return None

    def pull(self, A: Tensor, boxes: Sequence[Box], parameters: Tensor | None = None) -> Pulled:
        """Back to the input's shape."""
        return Pulled((A.reshape(*A.shape[:2], *boxes[0].lower.shape[1:]),), None)


def reshape(call: Call, ref: Ref, shape: tuple[int, ...]) -> Ref:
    """Append a reshape where one is needed."""
    return ref if ref.shape == shape else call.emit(Reshape(shape), ref)


def _resolve(call: Call, ref: Ref, shape: Sequence[int]) -> Ref:
    """Reshape to a framework's shape: batch axis first, -1 for the rest, 0 for "as it was"."""
    size = 1
    for s in ref.shape:
        size *= s
    full = (1, *ref.shape)
    target = [
        full[i] if s == 0 and call.opset and i < len(full) else s for i, s in enumerate(shape)
    ]
    known = 1
    for s in target:
        known *= s if s != -1 else 1
    resolved = [s if s != -1 else size // known for s in target]
    if not resolved or resolved[0] != 1:
        if len(resolved) and _numel(resolved) == size and not call.opset:
            raise call.error(f"shape {list(shape)} mixes samples: its first axis must be the batch")
        # Networks without a batch axis reshape one sample; give it ours.
        resolved = [1, *resolved]
    if _numel(resolved) != size:
        raise call.error(f"cannot reshape {ref.shape} to {list(shape)}")
    return reshape(call, ref, tuple(resolved[1:]))


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for s in shape:
        count *= s
    return count


@onnx("Reshape")
@aten("view", "reshape", "_unsafe_view", "view_copy")
def build_reshape(call: Call) -> Ref:
    """Reshape to a constant shape."""
    return _resolve(call, call.ref(), call.ints(1, "shape" if call.opset else "size"))


@onnx("Flatten")
def flatten(call: Call) -> Ref:
    """All but the batch axis in one."""
    ref = call.ref()
    if call.attributes.get("axis", 1) not in (0, 1, -len(ref.shape)):
        raise call.error("flattens from an axis other than 1")
    return reshape(call, ref, (_numel(ref.shape),))


@onnx("Identity", "Dropout", "Cast")
@aten(
    "alias",
    "clone",
    "detach",
    "dropout",
    "contiguous",
    "_to_copy",
    "lift_fresh_copy",
    "native_dropout",
)
@batch_anywhere
def identity(call: Call) -> Ref | Moved:
    """Nothing happens in evaluation mode."""
    return call.variable()
