"""Random changes of training images on the device: shift, mirror, CutMix.

Every sample draws its own numbers, so that a batch is the same however it is cut over processes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.defenses.base import Batch
from holdfast.engine.random import Rng
from holdfast.errors import PlanError

NAMES = ("crop", "flip", "cutmix")
_PAD = 8  # a shift by at most an eighth of the side: 4 of CIFAR's 32 pixels, as usual there
_CUTMIX_CHANCE = 0.5


def check(names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Refuse unknown augmentations, and those of images for other inputs.

    Raises:
        PlanError: naming what exists.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise PlanError(f"Unknown augmentation {unknown[0]!r}. Use any of: {', '.join(NAMES)}.")
    if names and len(shape) != 3:
        raise PlanError(
            f"The augmentations {', '.join(names)} are for images (channels, height, width); these "
            f"inputs have shape {shape}. Leave them out."
        )


def augmented(batch: Batch, names: tuple[str, ...], rng: Rng) -> Batch:
    """The batch with its images changed; ``rng`` has one row per sample."""
    x = batch.x
    if "crop" in names:
        x = shifted(x, rng.fold(1))
    if "flip" in names:
        is_mirrored = rng.fold(2).uniform(()) < 0.5
        x = torch.where(is_mirrored[:, None, None, None], x.flip(3), x)
    batch = replace(batch, x=x)
    return cut_and_mixed(batch, rng.fold(3)) if "cutmix" in names else batch


def shifted(x: Tensor, rng: Rng) -> Tensor:
    """Each image ``(n, c, h, w)`` moved by up to an eighth of its side, zeros moving in."""
    n, _, height, width = x.shape
    pad_h, pad_w = height // _PAD, width // _PAD
    down = rng.fold(0).integers(2 * pad_h + 1) - pad_h
    right = rng.fold(1).integers(2 * pad_w + 1) - pad_w
    rows = torch.arange(height, device=x.device) + down[:, None]
    columns = torch.arange(width, device=x.device) + right[:, None]
    is_inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    is_inside = is_inside & ((columns >= 0) & (columns < width))[:, None, None, :]
    each = torch.arange(n, device=x.device)[:, None, None]
    row = rows.clamp(0, height - 1)[:, :, None]
    column = columns.clamp(0, width - 1)[:, None, :]
    moved = x.permute(0, 2, 3, 1)[each, row, column]
    return torch.where(is_inside, moved.permute(0, 3, 1, 2), 0.0)


def cut_and_mixed(batch: Batch, rng: Rng) -> Batch:
    """CutMix (Yun et al., 2019, arXiv:1905.04899): a box pasted from the next image of the batch.

    Half of the samples stay whole. The share of the box is uniform on [0, 1], as with the paper's
    alpha of 1; the loss weighs both labels by the area that is left of each.
    """
    x = batch.x
    n, _, height, width = x.shape
    side = rng.fold(0).uniform(()).sqrt()
    is_cut = rng.fold(1).uniform(()) < _CUTMIX_CHANCE
    top, bottom = _span(rng.fold(2).uniform(()), side, height)
    left, right = _span(rng.fold(3).uniform(()), side, width)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    box = in_rows[:, None, :, None] & in_columns[:, None, None, :] & is_cut[:, None, None, None]
    share = 1 - box.flatten(1).float().mean(1)
    other = torch.arange(n, device=x.device).roll(-1)
    return replace(batch, x=torch.where(box, x[other], x), y_other=batch.y[other], share=share)


def _span(centre: Tensor, share: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last place of an interval of ``share`` of ``size``, cut at the edges."""
    middle, half = centre * size, share * size / 2
    return (middle - half).round().clamp(0, size), (middle + half).round().clamp(0, size)
