"""How trained networks are judged: data, attacks and proofs on test images nobody chose by."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _common import data_folder, images
from holdfast.attacks.pgd import PGD

VERIFIERS = ("interval", "crown")  # cheapest first: the next sees what the last left open


def training_images(name: str) -> tuple[Tensor, Tensor]:
    """All training images in [0, 1] and their labels."""
    if name == "cifar10":
        stored = np.load(data_folder() / "cifar10" / "cifar10_train_first4000_lossless.npz")
        return _cifar(stored)
    from holdfast.modalities import load

    data = load(str(data_folder() / name / "train-images-idx3-ubyte.gz"))
    return data.fetch(range(len(data)))


def test_images(name: str, n: int) -> tuple[Tensor, Tensor]:
    """The first test images."""
    if name != "cifar10":
        return images(name, n)
    x, y = _cifar(np.load(data_folder() / "cifar10" / "cifar10_test_300_lossless.npz"))
    return x[:n], y[:n]


def _cifar(stored: Any) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(stored[name]) for name in ("x", "y"))
    x = x.permute(0, 3, 1, 2) if x.shape[-1] == 3 else x
    return x.float().contiguous() / (255 if x.dtype == torch.uint8 else 1), y.long()


def is_right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether each answer is right ``(n,)``."""
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in x.split(500)]) == y


def under_pgd(net: nn.Module, x: Tensor, y: Tensor, threat: str, restarts: int = 1) -> Tensor:
    """Whether each sample withstands PGD-50 ``(n,)``."""
    held = is_right(net, x, y)
    for _ in range(restarts):
        held &= is_right(net, PGD(steps=50)(net, x, y, threat), y)
    return held


def audited(net: nn.Module, x: Tensor, y: Tensor, threat: str) -> dict[str, Any]:
    """Clean and robust accuracy under ``standard``, with the 95% interval."""
    import holdfast

    with tempfile.TemporaryDirectory() as folder:
        report = holdfast.audit(net, (x, y), threat, curve_steps=0, verify="off", out=folder)
    robust = report.robust_accuracy
    return {
        "clean": report.clean_accuracy.value,
        "standard": robust.value,
        "standard_interval": [round(robust.lower, 4), round(robust.upper, 4)],
        "n_standard": robust.n,
    }


def verified(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, Any]:
    """Proven accuracy by each bound, in float64 with all rounding errors, and its seconds."""
    from holdfast.verifiers.bounds import bounds, margins

    found: dict[str, Any] = {}
    clean = is_right(net, x, y)
    proven = torch.zeros_like(clean)
    for method in VERIFIERS:
        open_ = (clean & ~proven).nonzero().squeeze(1)
        began = time.process_time()
        if len(open_):
            rows = margins(y[open_], 10)
            with torch.no_grad():
                lower = bounds(net, x[open_], eps, method=method, C=rows).lower
            proven[open_] = (lower > 0).all(1)
        found[f"verified_{method}"] = rate(proven)
        found[f"verified_{method}_s"] = round(time.process_time() - began, 1)
    return found


def rate(holds: Tensor) -> float:
    """The mean of yes and no."""
    return round(float(holds.float().mean()), 4)
