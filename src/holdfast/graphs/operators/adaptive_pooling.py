"""Pooling to a given size."""

from __future__ import annotations

from holdfast.graphs.builder import Call, Ref, aten
from holdfast.graphs.operators.extremes import largest
from holdfast.graphs.operators.max_pool import max_pool
from holdfast.graphs.operators.pooling import average_pool
from holdfast.graphs.operators.sum import reduce_sum
from holdfast.graphs.operators.uneven import Range, averages, windowed


def _adaptive(size: int, out: int) -> list[Range]:
    """The windows of adaptive pooling along one axis; their sizes may differ."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


@aten(
    "adaptive_avg_pool1d",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool3d",
)
def adaptive_average(call: Call) -> Ref:
    """Average pooling to a given size."""
    ref = call.ref()
    size = call.ints(1, "output_size")
    if all(s == 1 for s in size):
        return reduce_sum(call, ref, range(1, len(ref.shape)), keep=True, mean=True)
    if any(n % s for n, s in zip(ref.shape[1:], size, strict=True)):
        return averages(
            call, ref, [_adaptive(n, s) for n, s in zip(ref.shape[1:], size, strict=True)]
        )
    kernel = [n // s for n, s in zip(ref.shape[1:], size, strict=True)]
    return average_pool(call, ref, kernel, kernel, [0] * (2 * len(kernel)), True)


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_maximum(call: Call) -> list[Ref | None]:
    """Maximum pooling to a given size; the indices are not available."""
    ref = call.ref()
    size = call.ints(1, "output_size")
    if not any(n % s for n, s in zip(ref.shape[1:], size, strict=True)):
        kernel = [n // s for n, s in zip(ref.shape[1:], size, strict=True)]
        pads, ones = [0] * (2 * len(kernel)), [1] * len(kernel)
        return [max_pool(call, ref, kernel, kernel, pads, ones, False), None]
    axes = [_adaptive(n, s) for n, s in zip(ref.shape[1:], size, strict=True)]
    return [largest(call, windowed(call, ref, axes, repeat=True)[0]), None]
