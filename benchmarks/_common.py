"""What the benchmarks share: where the data is, how passes are counted, how results are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("holdfast", "torch", "numpy", "scipy")


def data_folder() -> Path:
    """``$HOLDFAST_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("HOLDFAST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"No benchmark data at {folder}. Set HOLDFAST_DATA to the folder that holds it.")
    return folder


def images(name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first ``n`` test images of ``mnist`` or ``fashion_mnist`` in [0, 1], and their labels."""
    from holdfast.modalities import load

    data = load(str(data_folder() / name / "t10k-images-idx3-ubyte.gz"))
    return data.fetch(range(min(n or len(data), len(data))))


@dataclass(slots=True)
class Count:
    """Samples that went forward and backward through a module."""

    forward: int = 0
    backward: int = 0

    @property
    def passes(self) -> int:
        """Both together."""
        return self.forward + self.backward


@contextmanager
def counted(net: nn.Module) -> Iterator[Count]:
    """Count every row with hooks on the module itself: the same instrument for everyone."""
    count = Count()

    def backward(gradient: Tensor) -> None:
        count.backward += len(gradient)

    def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count.forward += len(inputs[0])
        if output.requires_grad:
            output.register_hook(backward)

    handle = net.register_forward_hook(forward)
    try:
        yield count
    finally:
        handle.remove()


def success_rate(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, eps: float) -> float:
    """Fraction of all samples answered wrongly inside the linf ball and [0, 1], in float32.

    A point outside (by more than a rounding) is no success, whoever made it.
    """
    slack = 4 * torch.finfo(torch.float32).eps
    inside = (x_adv - x).abs().flatten(1).amax(1) <= eps + slack
    inside &= ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    net.eval()
    with torch.no_grad():
        wrong = torch.cat([net(part).argmax(1) for part in x_adv.float().split(256)]) != y
        clean_wrong = torch.cat([net(part).argmax(1) for part in x.split(256)]) != y
    return float(((wrong & inside) | clean_wrong).float().mean())


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call, the GPU's work included."""
    _synchronise()
    start = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> list[str]:
    """The command's arguments; folders of this machine are called DIR."""
    return ["DIR" if Path(a).is_absolute() else a for a in sys.argv[1:]]


def write(name: str, settings: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> Path:
    """Write ``benchmarks/results/<name>.json``: what was measured, where, and on which commit."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "name": name,
        "command": f"python benchmarks/{' '.join([Path(sys.argv[0]).name, *_arguments()])}",
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "changed_since_commit": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "settings": settings,
        "rows": rows,
        **more,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),
    }


def commit() -> str:
    """The commit that is checked out."""
    return _git("rev-parse", "--short=12", "HEAD") or "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
