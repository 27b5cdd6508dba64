"""CIFAR-10 on a GPU: what thirty epochs give, and what an epoch costs beside a bare loop.

The images are the JPEG set of the data folder, so figures are a point or two below those for the
lossless one. Each case is one piece under ``build/harden_gpu``: stop at any time, go on with the
same command. Nothing is chosen on the test images.

    python benchmarks/harden_gpu.py pgd trades-awp epoch
    python benchmarks/harden_gpu.py --collect        write results/harden_gpu.json
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _common import ROOT, commit, data_folder, machine, seconds, write
from _judging import audited
from _models import preact_resnet18

PIECES = ROOT / "build" / "harden_gpu"
THREAT, EPS = "linf:8/255", 8 / 255
N_TEST = 1000
BATCH, STEPS = 256, 10

Found = dict[str, Any]


def cifar(part: str) -> tuple[Tensor, Tensor]:
    """All images of ``train`` or ``test`` as uint8 ``(n, 3, 32, 32)``, in a fixed mixed order."""
    kept = PIECES / f"cifar10_jpeg_{part}.pt"
    if not kept.is_file():
        PIECES.mkdir(parents=True, exist_ok=True)
        torch.save(_unpacked(part), kept)
    x, y = torch.load(kept, weights_only=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order], y[order]


def _unpacked(part: str) -> tuple[Tensor, Tensor]:
    from PIL import Image

    found: list[tuple[str, np.ndarray]] = []
    with tarfile.open(data_folder() / "cifar10" / "cifar10_jpegq75_60k.tar.xz") as archive:
        for member in archive:
            folders = Path(member.name).parts
            file = archive.extractfile(member) if part in folders else None
            if file is not None:
                picture = Image.open(io.BytesIO(file.read())).convert("RGB")
                found.append((folders[-2], np.asarray(picture)))
    names = sorted({name for name, _ in found})
    x = torch.from_numpy(np.stack([image for _, image in found])).permute(0, 3, 1, 2)
    return x.contiguous(), torch.tensor([names.index(name) for name, _ in found])


# ---------------------------------------------------------------------- cases


def pgd(folder: Path) -> Found:
    """PGD training with ten steps, thirty epochs."""
    return _thirty_epochs("pgd_training(attack=pgd(steps=10))", folder)


def trades_awp(folder: Path) -> Found:
    """TRADES with adversarial weight perturbation, thirty epochs."""
    inner = "trades(beta=6.0, attack=pgd(steps=10, random_start=False))"
    return _thirty_epochs(f"awp({inner}, gamma=0.005)", folder)


def _thirty_epochs(recipe: str, folder: Path) -> Found:
    import holdfast

    x, y = (part[:N_TEST] for part in cifar("test"))
    x = x.float() / 255
    result = holdfast.harden(
        preact_resnet18().to("cuda"),
        cifar("train"),
        threat=THREAT,
        recipe=recipe,
        epochs=30,
        from_scratch=True,
        audit=False,
        augment=("crop", "flip"),
        batch_size=BATCH,
        device="cuda",
        out=folder / "run",
    )
    card, net = result.card, result.module.eval().float()
    cost = {"training_s": round(card.training_seconds), "passes": card.passes, "recipe": recipe}
    return cost | audited(net, x.to("cuda"), y.to("cuda"), THREAT)


def epoch(folder: Path, n: int = 50_000, device: str = "cuda") -> Found:
    """Seconds of one epoch of PGD training with ten steps, the bare loop beside it."""
    x, y = (part[:n] for part in cifar("train"))
    ours = _own_epoch(x, y, device)
    x, y = x.to(device), y.to(device)
    net = preact_resnet18().to(device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4)
    bare_epoch(net, optimiser, x[: 4 * BATCH], y[: 4 * BATCH])  # warms up
    floor = seconds(lambda: bare_epoch(net, optimiser, x, y))
    return {"harden_s": round(ours, 2), "bare_s": round(floor, 2), "ratio": round(ours / floor, 3)}


def _own_epoch(x: Tensor, y: Tensor, device: str) -> float:
    """Of the last of three epochs, validation not counted."""
    import holdfast
    from holdfast.hardening.events import Training

    spoken: list[tuple[float, float]] = []

    def note(event: Any) -> None:
        if isinstance(event, Training):
            spoken.append((event.epoch, time.perf_counter()))

    holdfast.harden(
        preact_resnet18().to(device),
        (x, y),
        threat=THREAT,
        recipe="pgd_training(attack=pgd(steps=10))",
        epochs=3,
        from_scratch=True,
        audit=False,
        batch_size=BATCH,
        device=device,
        n_validation=100,
        validation_steps=1,
        updates_per_round=10**6,
        updates_per_check=10**6,
        on_event=note,
    )
    late = [(done, at) for done, at in spoken if 1.5 <= done < 2.95]
    (first, start), (last, end) = late[0], late[-1]
    return (end - start) / (last - first)


def bare_epoch(net: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """PGD training with nothing around it, in the precision that ``harden`` chooses."""
    for rows in torch.randperm(len(x), device=x.device).split(BATCH):
        clean = x[rows].float().div(255).contiguous(memory_format=torch.channels_last)
        x_adv = (clean + torch.empty_like(clean).uniform_(-EPS, EPS)).clamp(0, 1)
        net.eval()
        for _ in range(STEPS):
            x_adv.requires_grad_()
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = F.cross_entropy(net(x_adv), y[rows], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + 2.5 * EPS / STEPS * gradient.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, clean - EPS), clean + EPS).clamp(0, 1)
        net.train()
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = F.cross_entropy(net(x_adv.detach()), y[rows])
        loss.backward()
        optimiser.step()


CASES: dict[str, Callable[[Path], Found]] = {"pgd": pgd, "trades-awp": trades_awp, "epoch": epoch}
ASKED = {
    "pgd": "at least 80% clean and 46% robust",
    "trades-awp": "at least 49% robust",
    "epoch": "at most 12 s on an H200-class card",
}


def piece(name: str) -> None:
    """One case; kept when done."""
    folder = PIECES / name
    done = folder / "measured.json"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = {"case": name, "asked": ASKED[name], "gpu": machine()["gpu"], **CASES[name](folder)}
    done.write_text(json.dumps(found | {"commit": commit()}))
    print(json.dumps(found), flush=True)


def main() -> None:
    """Run what is asked for, or collect what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--collect", action="store_true", help="write results/harden_gpu.json")
    asked = parser.parse_args()
    if unknown := [name for name in asked.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; cases: {', '.join(CASES)}")
    if asked.cases and not torch.cuda.is_available():
        raise SystemExit("These cases need a GPU that torch can use; there is none here.")
    for name in asked.cases:
        piece(name)
    if asked.collect:
        rows = [json.loads(p.read_text()) for p in sorted(PIECES.glob("*/measured.json"))]
        write("harden_gpu", {"n_test": N_TEST, "batch": BATCH, "threat": THREAT}, rows)


if __name__ == "__main__":
    main()
