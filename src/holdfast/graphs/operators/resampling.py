"""Upsampling by linear and cubic interpolation: a matrix along every axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten
from holdfast.graphs.operators.linear import Linear


@aten("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def build(call: Call) -> Ref:
    """One axis after another, as the weights are products of those of the axes."""
    ref = call.ref()
    operator = getattr(torch.ops.aten, call.name)

    def resample(x: Tensor) -> Tensor:
        return operator(x, *call.args[1:], **call.attributes)

    for axis in range(1, len(ref.shape)):
        weight = _matrix(resample, call.ref().shape, axis)
        last = call.move(lambda p, a=axis: p.movedim(a + 1, -1), ref)
        out = call.emit(Linear(weight, torch.zeros(len(weight), dtype=torch.float64)), last)
        ref = call.move(lambda p, a=axis: p.movedim(-1, a + 1), out)
    return ref


def _matrix(resample: Callable[[Tensor], Tensor], shape: tuple[int, ...], axis: int) -> Tensor:
    """What each position along ``axis`` gets from each, ``(out, in)``: columns of unit images."""
    size, spatial = shape[axis], shape[1:]
    unit = torch.eye(size, dtype=torch.float64)
    unit = unit.reshape(size, 1, *(size if i == axis - 1 else 1 for i in range(len(spatial))))
    images = resample(unit.expand(size, 1, *spatial).contiguous())
    along = images.movedim(axis + 1, -1)[:, 0]
    return along.reshape(size, -1, along.shape[-1])[:, 0].T.contiguous()
