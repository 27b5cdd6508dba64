"""Importers of operators that move elements; all become ``Take`` or ``Reshape``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Moved, Ref, Value, aten, batch_anywhere, onnx
from holdfast.graphs.operators.take import take


@aten(
    "permute",
    "transpose",
    "t",
    "slice",
    "select",
    "index_select",
    "unsqueeze",
    "squeeze",
    "expand",
    "flip",
    "roll",
    "repeat",
    "pixel_shuffle",
    "pixel_unshuffle",
    "narrow",
    "unfold",
    "movedim",
    "gather",
    "tile",
    "diagonal",
    "expand_copy",
    "permute_copy",
    "unsqueeze_copy",
    "squeeze_copy",
    "slice_copy",
    "select_copy",
    "index",
    "channel_shuffle",
    "swapaxes",
    "rot90",
)
@batch_anywhere
def rearrange(call: Call) -> Ref | Moved:
    """Any rearrangement ATen knows, applied to the positions themselves."""
    operator = getattr(torch.ops.aten, call.name)
    rest = list(call.args[1:])
    return call.moved(lambda p: [operator(p, *rest, **call.attributes)], call.variable())[0]


@aten("im2col")
def patches(call: Call) -> Ref:
    """Patches as columns, what lies outside the map as zeros."""
    rest = call.args[1:]

    def columns(p: Tensor) -> Tensor:  # positions from 1, so that padding stands apart
        return torch.ops.aten.im2col(p.double() + 1, *rest).long() - 1

    return call.move(columns, call.ref())


@aten("split", "split_with_sizes", "chunk", "unbind", "tensor_split")
@batch_anywhere
def pieces(call: Call) -> list[Ref | Moved]:
    """Several rearrangements at once."""
    operator = getattr(torch.ops.aten, call.name)
    rest = call.args[1:]
    return call.moved(lambda p: operator(p, *rest, **call.attributes), call.variable())


@aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def upsample(call: Call) -> Ref:
    """Nearest-neighbour upsampling to a size or by factors."""
    ref = call.ref()
    size = call.get(1, "output_size") or call.get(1, "size")
    factors: Value = call.attributes.get("scale_factors")
    if factors is None and len(call.args) > 2 and isinstance(call.args[2], (list, tuple)):
        factors = call.args[2]
    return call.move(lambda p: _nearest(p, size, None if size else factors), ref)


def _nearest(positions: Tensor, size: list[int] | None, factors: list[float] | None) -> Tensor:
    # Positions beyond 2**53 do not occur, so float64 keeps them whole.
    out = F.interpolate(positions.double(), size=size, scale_factor=factors, mode="nearest")
    return out.long()


@aten("constant_pad_nd", "pad")
def pad(call: Call) -> Ref:
    """Padding with a constant, by reflection or by the edge."""
    ref = call.ref()
    widths, value = call.ints(1, "pad"), float(call.attributes.get("value") or 0.0)
    mode = "constant"
    if call.name == "pad":
        mode = call.get(2, "mode", "constant")
        value = float(call.get(3, "value", 0.0) or 0.0)
    elif len(call.args) > 2:
        value = float(call.args[2])
    return padded(call, ref, widths, value, mode)


def padded(call: Call, ref: Ref, widths: list[int], value: float, mode: str = "constant") -> Ref:
    """Pad ``ref``; ``widths`` as in torch, last axis first."""
    positions = torch.arange(torch.Size(ref.shape).numel()).reshape(1, *ref.shape)
    if mode == "constant":
        return take(call, ref, F.pad(positions, widths, value=-1)[0], value)
    out = F.pad(positions.double(), widths, mode=mode)
    return take(call, ref, out.long()[0])


@onnx("Pad")
def onnx_pad(call: Call) -> Ref:
    """Padding; ONNX lists all beginnings, then all ends."""
    ref = call.ref()
    pads = call.ints(1, "pads")
    constant = call.constant(2, "value") if call.opset >= 11 else None
    value = (
        float(call.attributes.get("value", 0.0))
        if constant is None
        else float(constant.flatten()[0])
    )
    rank = len(pads) // 2
    widths: list[int] = []
    for axis in reversed(range(rank)):
        widths += [pads[axis], pads[axis + rank]]
    if any(widths[-2:]) and rank == len(ref.shape) + 1:
        raise call.error("pads the batch axis")
    mode = call.attributes.get("mode", "constant")
    mode = "replicate" if mode == "edge" else str(mode)
    if mode != "constant":
        while len(widths) > 2 and not any(widths[-2:]):
            widths = widths[:-2]
    return padded(call, ref, widths, value, mode)


@onnx("Transpose")
@batch_anywhere
def onnx_transpose(call: Call) -> Ref | Moved:
    """Permutes axes; reversed by default."""
    axes = call.ints(9, "perm")

    def permute(p: Tensor) -> Tensor:
        return p.permute(axes or [*reversed(range(p.dim()))])

    return call.moved(lambda p: [permute(p)], call.variable())[0]


@onnx("Squeeze", "Unsqueeze")
@batch_anywhere
def onnx_squeeze(call: Call) -> Ref | Moved:
    """Drops or adds axes of length one."""
    value, axes = call.variable(), call.ints(1, "axes")
    batch = value.at if isinstance(value, Moved) else 0

    def squeeze(p: Tensor) -> Tensor:
        dropped = [a % p.dim() for a in axes] or [i for i, s in enumerate(p.shape) if s == 1]
        return p.squeeze(tuple(a for a in dropped if a != batch))

    def unsqueeze(p: Tensor) -> Tensor:
        for a in sorted(a % (p.dim() + len(axes)) for a in axes):
            p = p.unsqueeze(a)
        return p

    change = squeeze if call.name == "Squeeze" else unsqueeze
    return call.moved(lambda p: [change(p)], value)[0]


@onnx("Slice")
def onnx_slice(call: Call) -> Ref:
    """Ranges of indices per axis, steps may be negative."""
    ref = call.ref()
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    axes = call.ints(3, "axes", list(range(len(starts))))
    steps = call.ints(4, "steps", [1] * len(starts))

    def cut(p: Tensor) -> Tensor:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index = range(p.shape[axis])[slice(start, _end(end, step), step)]
            p = p.index_select(axis, torch.tensor(list(index), dtype=torch.long))
        return p

    return call.move(cut, ref)


def _end(end: int, step: int) -> int | None:
    # A very negative end with a negative step means "past the first element".
    return None if step < 0 and end < -(2**31) + 2 else end


@onnx("Gather")
@batch_anywhere
def onnx_gather(call: Call) -> Ref | Moved:
    """Picks constant indices along an axis."""
    value, index = call.variable(), call.constant(1)
    assert index is not None
    axis = int(call.attributes.get("axis", 0))

    def pick(p: Tensor) -> Tensor:
        length, a = p.shape[axis], axis % p.dim()
        flat = (index.long() % length).flatten()
        shape = (*p.shape[:a], *index.shape, *p.shape[a + 1 :])
        return p.index_select(a, flat).reshape(shape)

    return call.moved(lambda p: [pick(p)], value)[0]


@onnx("Expand", "Tile")
def onnx_expand(call: Call) -> Ref:
    """Repeats along axes."""
    counts = call.ints(1, "shape")
    if call.name == "Tile":
        return call.move(lambda p: p.repeat(counts), call.ref())
    return call.move(lambda p: torch.broadcast_tensors(p, torch.empty(counts))[0], call.ref())


@onnx("Split")
@batch_anywhere
def onnx_split(call: Call) -> list[Ref | Moved]:
    """Splits along an axis into given or equal parts."""
    axis, sizes = int(call.attributes.get("axis", 0)), call.ints(1, "split")

    def split(p: Tensor) -> Sequence[Tensor]:
        if sizes:
            return p.split(sizes, axis)
        count = int(call.attributes.get("num_outputs", call.attributes["n_outputs"]))
        return p.split(-(-p.shape[axis] // count), axis)

    return call.moved(split, call.variable())


@onnx("Resize", "Upsample")
def onnx_resize(call: Call) -> Ref:
    """Nearest-neighbour upsampling by whole factors."""
    ref = call.ref()
    if call.attributes.get("mode", "nearest") != "nearest":
        raise call.error("only mode 'nearest' is supported")
    scales = call.constant(1 if call.name == "Upsample" or call.opset < 11 else 2, "scales")
    if scales is not None and scales.numel():
        factors = [float(s) for s in scales]
    else:
        sizes = call.ints(3, "sizes")
        factors = [s / f for s, f in zip(sizes, (1, *ref.shape), strict=True)]
    place = call.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = call.attributes.get("nearest_mode", "round_prefer_floor")
    if call.name == "Upsample" or call.opset < 11:
        place, rounding = "asymmetric", "floor"
    # These repeat every element equally often; other combinations shift some of them.
    if (place, rounding) not in (("half_pixel", "round_prefer_floor"), ("asymmetric", "floor")):
        raise call.error(f"coordinates {place!r} rounded by {rounding!r} are not supported")
    if any(f != int(f) or f < 1 for f in factors):
        raise call.error(f"only whole upsampling factors are supported; got {factors}")

    def grow(p: Tensor) -> Tensor:
        for axis, f in enumerate(factors):
            p = p.repeat_interleave(int(f), axis)
        return p

    return call.move(grow, ref)


@onnx("DepthToSpace")
def onnx_depth_to_space(call: Call) -> Ref:
    """Channels into blocks of pixels, orders DCR and CRD."""
    b = int(call.attributes["blocksize"])

    def blocks(p: Tensor) -> Tensor:
        n, c, h, w = p.shape
        if call.attributes.get("mode", "DCR") == "CRD":
            return F.pixel_shuffle(p, b)
        p = p.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return p.reshape(n, c // b**2, h * b, w * b)

    return call.move(blocks, call.ref())


@onnx("SpaceToDepth")
def onnx_space_to_depth(call: Call) -> Ref:
    """Blocks of pixels into channels."""
    b = int(call.attributes["blocksize"])

    def channels(p: Tensor) -> Tensor:
        n, c, h, w = p.shape
        p = p.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
        return p.reshape(n, c * b * b, h // b, w // b)

    return call.move(channels, call.ref())
