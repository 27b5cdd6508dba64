"""How strong, for how many passes: ours against AutoAttack's own code, sample by sample.

Every tool attacks the same samples of the same networks; passes are counted by hooks on the
network, the same instrument for everyone; success is judged here, not by the tool. Work is kept
in pieces under ``build/strength``, so a run may be stopped and gone on with:

    python benchmarks/strength.py --models mnist_fgsm --tools quick standard --n 200
    python benchmarks/strength.py --autoattack ../auto-attack --tools reference
    python benchmarks/strength.py --collect
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _tools
from _common import ROOT, counted, seconds
from _tools import Tool
from _validation import CASES, Case, network, samples

PIECES = ROOT / "build" / "strength"
PRESETS = ("quick", "standard", "thorough", "autoattack")
PIECE = 50  # samples per piece: what is lost at most when a run is stopped


def ours(cascade: str) -> Tool:
    """An audit with one of our cascades."""

    def run(net: nn.Module, x: Tensor, y: Tensor, case: Case) -> Tensor:
        import holdfast

        with tempfile.TemporaryDirectory() as folder:
            report = holdfast.audit(
                net, (x, y), case.threat, cascade=cascade, curve_steps=0, out=folder
            )
            return report.adversarial().to(x).clone()

    return run


def tools(folder: Path | None) -> dict[str, Tool]:
    """Every tool that can run here."""
    found: dict[str, Tool] = {name: ours(name) for name in PRESETS}
    found |= {"torchattacks": _tools.torchattacks, "art": _tools.art}
    if folder is not None:
        found["reference"] = _tools.reference(folder)
        found["reference, other seed"] = _tools.reference(folder, seed=1)
    return found


def fooled(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, case: Case) -> Tensor:
    """Which samples are answered wrongly at an allowed input (clean mistakes count), in float32."""
    p = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[case.norm]
    size = (x_adv.double() - x.double()).flatten(1).norm(p=p, dim=1)
    slack = 1e-6 * (1 + case.eps) * (x[0].numel() if p == 1 else 1)
    inside = (size <= case.eps + slack) & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    with torch.no_grad():
        wrong = net(x_adv.float()).argmax(1) != y
        clean_wrong = net(x).argmax(1) != y
    return (wrong & inside) | clean_wrong


def piece(name: str, tool: Tool, start: int, stop: int) -> dict[str, Any]:
    """One tool on some samples of one network."""
    net, case = network(name), CASES[name]
    x, y = (part[start:] for part in samples(name, stop))
    out: list[Tensor] = []
    with counted(net) as count:
        spent = seconds(lambda: out.append(tool(net, x.clone(), y.clone(), case)))
    broken = fooled(net, out[0], x, y, case)
    return {
        "fooled": "".join(str(int(b)) for b in broken),
        "forward": count.forward,
        "backward": count.backward,
        "seconds": round(spent, 2),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
    }


def measure(name: str, tool: str, run: Tool, n: int, size: int = PIECE) -> None:
    """All pieces of one tool on one network that are not there yet."""
    n = min(n, len(samples(name, n)[1]))
    for start in range(0, n, size):
        stop = min(start + size, n)
        path = PIECES / f"{name}-{tool}-{start}-{stop}.json".replace(", ", "-").replace(" ", "-")
        if path.is_file() and json.loads(path.read_text())["source"] == _source(tool):
            continue
        found = piece(name, run, start, stop) | {"model": name, "tool": tool, "start": start}
        found["source"] = _source(tool)
        PIECES.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        shown = {key: value for key, value in found.items() if key not in ("source", "fooled")}
        print(shown | {"robust": found["fooled"].count("0")}, flush=True)


def _source(tool: str) -> str:
    """For our own tools a hash of the source: other code, other figures."""
    if tool not in PRESETS:
        return ""
    files = [ROOT / "src" / "holdfast" / "cascades" / f"{tool}.toml"]
    for folder in ("attacks", "perturbations"):
        files += sorted((ROOT / "src" / "holdfast" / folder).glob("*.py"))
    files += [
        ROOT / "src" / "holdfast" / "engine" / f
        for f in ("slots.py", "attacking.py", "cascade.py", "judge.py")
    ]
    return hashlib.blake2b(b"".join(f.read_bytes() for f in files), digest_size=8).hexdigest()
