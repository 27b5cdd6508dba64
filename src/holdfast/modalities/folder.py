"""Images in a folder with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from holdfast.data import Data
from holdfast.errors import DataError
from holdfast.modalities._source import Source

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_GREY = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I"}
_CLASSES_FILE = "classes.txt"


@final
@dataclass(frozen=True)
class ImageFolder:
    """Images decoded when they are needed.

    Attributes:
        files: One per sample.
        labels: Class numbers ``(n,)``.
        shape: ``(channels, height, width)``, one channel where all images are grey.
        class_names: Names of the sub-folders in label order.
        description: What this is.
    """

    files: tuple[Path, ...]
    labels: Tensor
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    description: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images ``(n, c, h, w)`` in [0, 1] and their labels."""
        images = [_decoded(self.files[int(i)], self.shape[0]) for i in indices]
        x = torch.stack(images) if images else torch.empty(0, *self.shape)
        return x, self.labels[torch.as_tensor(indices, dtype=torch.int64)]


def load_folder(spec: str, label: str | None = None, n: int | None = None) -> Data:
    """The images below ``spec``; each sub-folder is a class.

    Classes are numbered in sorted order (by value where all names are numbers), or in the order of
    the lines of ``classes.txt``. Samples take turns between the classes, so that the first n are
    spread over all of them.

    Raises:
        DataError: for folders without classes or images, and images that differ in size.
    """
    root = Path(spec).expanduser()
    names = _class_names(root)
    per_class = [_images_of(root / name) for name in names]
    if not any(per_class):
        raise DataError(
            f"{root} holds no images: its {len(names)} sub-folders have no file with one of the "
            f"endings {', '.join(sorted(_ENDINGS))}."
        )
    turns = zip_longest(*[[(file, i) for file in files] for i, files in enumerate(per_class)])
    pairs = [pair for pair in chain.from_iterable(turns) if pair is not None][:n]
    shape, note = _common_shape([file for file, _ in pairs])
    size = f"{shape[2]}x{shape[1]} images of {len(names)} classes"
    return ImageFolder(
        files=tuple(file for file, _ in pairs),
        labels=torch.tensor([i for _, i in pairs], dtype=torch.int64),
        shape=shape,
        class_names=tuple(names),
        description="; ".join(text for text in (f"{root.name or root}: {size}", note) if text),
    )


def _class_names(root: Path) -> list[str]:
    found = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not found:
        files = sorted(p.name for p in root.iterdir() if p.is_file())[:4]
        raise DataError(
            f"{root} has no sub-folders: expected one per class. It holds "
            f"{', '.join(files) or 'nothing'}. Give a file by its own name."
        )
    if {name.lower() for name in found} <= _SPLITS:
        raise DataError(
            f"{root} is split into {', '.join(sorted(found))}, which are not classes. Give one of "
            f"them: {root / sorted(found)[0]}"
        )
    listing = root / _CLASSES_FILE
    if listing.is_file():
        names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name]
        if set(found) - set(names):
            raise DataError(f"{listing} lacks the classes {', '.join(set(found) - set(names))}.")
        return names
    if all(name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def _images_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
    return sorted(p for p in files if not p.name.startswith("."))


def _common_shape(files: list[Path]) -> tuple[tuple[int, int, int], str]:
    """The shape that all images share, from their headers alone."""
    sizes: dict[tuple[int, int], Path] = {}
    modes: set[str] = set()
    for file in files:
        with _opened(file) as image:
            sizes.setdefault(image.size, file)
            modes.add(image.mode)
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise DataError(
                f"The images differ in size: {first} is {one[0]}x{one[1]}, {second} is "
                f"{other[0]}x{other[1]}. Resize them all to the size the model was trained on."
            )
    ((width, height),) = sizes
    has_alpha = any(mode.endswith("A") for mode in modes)
    note = "transparency dropped" if has_alpha else ""
    return (1 if modes <= _GREY else 3, height, width), note


def _opened(file: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"Cannot read the image {file}: {error}. Mend or remove it.") from None


def _decoded(file: Path, channels: int) -> Tensor:
    """``(channels, h, w)`` in [0, 1]."""
    with _opened(file) as image:
        try:
            if image.mode.startswith("I"):
                grey = torch.from_numpy(np.asarray(image, dtype=np.float32).copy()) / 65535
                return grey.expand(channels, *grey.shape).clone()
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"Cannot decode the image {file}: {error}.") from None
    x = torch.from_numpy(pixels).float() / 255
    return x[None] if channels == 1 else x.permute(2, 0, 1).contiguous()


SOURCE = Source(
    name="folder",
    summary="a folder with one sub-folder of images (png, jpg, bmp, webp) per class",
    accepts=lambda spec: Path(spec).expanduser().is_dir(),
    load=load_folder,
)
