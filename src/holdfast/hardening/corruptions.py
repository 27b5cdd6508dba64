"""Ordinary damage to inputs, nobody's attack: what a model still answers right under it.

Training against small changes may cost accuracy on foggy or faint images, unseen by any attack.
The kinds follow Hendrycks and Dietterich (2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv:1903.12261); strengths are in units of the domain's width and
fixed here, so figures compare between models, not with that benchmark's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.engine.scan import chunks, inside
from holdfast.hardening.samples import Store

if TYPE_CHECKING:
    from holdfast.data import Data
    from holdfast.model import Model

_NOISE = 0.1  # standard deviation
_IMPULSES = 0.05  # of the values, to either end of the domain
_CONTRAST = 0.5  # of what there was
_BRIGHTER = 0.2
_SMALLEST_IMAGE = 4

# Takes the inputs ``(n, *shape)``, the domain's ends, and one random row per sample.
Corruption = Callable[[Tensor, Tensor, Tensor, Rng], Tensor]


def noise(x: Tensor, lower: Tensor, upper: Tensor, rng: Rng) -> Tensor:
    """Gaussian noise on every value."""
    return x + _NOISE * (upper - lower) * rng.normal(tuple(x.shape[1:]), x.dtype)


def impulses(x: Tensor, lower: Tensor, upper: Tensor, rng: Rng) -> Tensor:
    """Some values jump to one end of the domain."""
    u = rng.uniform(tuple(x.shape[1:]), x.dtype)
    low = torch.where(u < _IMPULSES / 2, lower.expand_as(x), x)
    return torch.where(u > 1 - _IMPULSES / 2, upper.expand_as(x), low)


def blur(x: Tensor, lower: Tensor, upper: Tensor, rng: Rng) -> Tensor:
    """The mean with the neighbours, weighed 1 2 1 in both directions; edges are repeated."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def contrast(x: Tensor, lower: Tensor, upper: Tensor, rng: Rng) -> Tensor:
    """Every image drawn towards its mean."""
    mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    return mean + _CONTRAST * (x - mean)


def brightness(x: Tensor, lower: Tensor, upper: Tensor, rng: Rng) -> Tensor:
    """Every value higher by the same amount."""
    return x + _BRIGHTER * (upper - lower)


_ANY: dict[str, Corruption] = {"noise": noise, "impulses": impulses}
_IMAGES: dict[str, Corruption] = {"blur": blur, "low contrast": contrast, "brightness": brightness}


def kinds(shape: tuple[int, ...]) -> dict[str, Corruption]:
    """Corruptions that mean something for inputs of this shape."""
    is_image = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _SMALLEST_IMAGE
    return _ANY | _IMAGES if is_image else _ANY


def answers(model: Model, data: Data, n: int, seed: int = 0) -> dict[str, list[bool]]:
    """Whether each of the first ``n`` samples is answered right, by kind of corruption."""
    store = Store(data, model)
    found: dict[str, list[bool]] = {name: [] for name in kinds(store.shape)}
    with model.session(), torch.no_grad():
        for chunk in chunks(min(n, len(store))):
            rows = torch.arange(chunk.start, chunk.stop)
            x, y = store.fetch(rows)
            lower, upper = model.domain.tensors(x)
            rng = Rng(rows.to(x.device)).fold(seed)
            for k, (name, corrupt) in enumerate(kinds(store.shape).items()):
                changed = inside(corrupt(x, lower, upper, rng.fold(k)), model.domain)
                found[name] += (model.logits(changed).argmax(1) == y).tolist()
    return found
