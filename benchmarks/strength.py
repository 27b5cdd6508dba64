"""How strong, for how many passes: ours against AutoAttack's own code, sample by sample.

Every tool attacks the same samples of the same networks; passes are counted by hooks on the
network, the same instrument for everyone; success is judged here, not by the tool. Work is kept
in pieces under ``build/strength``, so a run may be stopped and gone on with:

    python benchmarks/strength.py --models mnist_fgsm --tools quick standard --n 200
    python benchmarks/strength.py --autoattack ../auto-attack --tools reference
    python benchmarks/strength.py --collect
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _tools
from _common import RESULTS, ROOT, commit, counted, seconds, versions, write
from _tools import Outcome, Tool
from _validation import CASES, CHOSEN_ON, Case, network, samples

PIECES = ROOT / "build" / "strength"
PRESETS = ("quick", "standard", "thorough", "autoattack")
ENGINE = ("attacking", "clean", "handover", "judge", "lookahead", "opening", "slots", "tuning")
PIECE = 1000  # samples attacked together: what is lost at most when a run is stopped


def ours(cascade: str, seed: int = 0) -> Tool:
    """An audit with one of our cascades."""

    def run(net: nn.Module, x: Tensor, y: Tensor, case: Case) -> Outcome:
        import holdfast

        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"curve_steps": 0, "verify": "off", "out": folder}
            report = holdfast.audit(net, (x, y), case.threat, cascade=cascade, seed=seed, **options)
            rows, points = report.adversarial()
        result = report.threats[case.threat]
        x_adv = x.clone()
        x_adv[rows] = points.to(x)
        # without the checks of the model, whose cost does not grow with the data
        clean = sum(report.samples.forward) + sum(report.samples.backward)
        return x_adv, {"search": sum(result.forward) + sum(result.backward) + clean}

    return run


def tools(folder: Path | None) -> dict[str, Tool]:
    """Every tool that can run here."""
    found: dict[str, Tool] = {name: ours(name) for name in PRESETS}
    found |= {f"{name}, seed {seed}": ours(name, seed) for name in PRESETS[:2] for seed in (1, 2)}
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
    out: list[Outcome] = []
    with counted(net) as count:
        spent = seconds(lambda: out.append(tool(net, x.clone(), y.clone(), case)))
    x_adv, extra = out[0]
    broken = fooled(net, x_adv, x, y, case)
    return {
        "fooled": "".join(str(int(b)) for b in broken),
        "forward": count.forward,
        "backward": count.backward,
        "seconds": round(spent, 2),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "weights": _weights(net),
    } | extra


def _weights(net: nn.Module) -> str:
    """A hash: networks that are trained here differ from machine to machine."""
    values = [value.cpu().numpy().tobytes() for value in net.state_dict().values()]
    return hashlib.blake2b(b"".join(values), digest_size=8).hexdigest()


def measure(name: str, tool: str, run: Tool, n: int, size: int = PIECE) -> None:
    """All pieces of one tool on one network that are not there yet."""
    n = min(n, len(samples(name, n)[1]))
    for start in range(0, n, size):
        stop = min(start + size, n)
        path = PIECES / f"{name}-{tool}-{start}-{stop}.json".replace(", ", "-").replace(" ", "-")
        if path.is_file() and json.loads(path.read_text())["source"] == _source(tool):
            continue
        found = piece(name, run, start, stop) | {"model": name, "tool": tool, "start": start}
        found |= {"source": _source(tool), "commit": commit()}
        PIECES.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        hidden = ("source", "fooled", "commit")
        shown = {key: value for key, value in found.items() if key not in hidden}
        print(shown | {"robust": found["fooled"].count("0")}, flush=True)


def _source(tool: str) -> str:
    """For our own tools a hash of attacks, cascade and engine: other code, other figures."""
    cascade = tool.split(",")[0]
    if cascade not in PRESETS:
        return ""
    folder = ROOT / "src" / "holdfast"
    names = ("apgd", "fab", "fgsm", "malt", "square", "square_pgd", "_losses")
    files = [
        folder / "cascades" / f"{cascade}.toml",
        *(folder / "attacks" / f"{n}.py" for n in names),
    ]
    files += sorted((folder / "attacks" / "_square").glob("*.py"))
    files += [folder / "engine" / f"{n}.py" for n in ENGINE]
    return hashlib.blake2b(b"".join(f.read_bytes() for f in files), digest_size=8).hexdigest()


def collect() -> list[dict[str, Any]]:
    """One row per network and tool, from the pieces; each compared with the reference's.

    Rows of the results file that no piece here is about are kept as they are, with their commit; so
    are the verdicts of the reference, which take hours to measure. A network that was trained anew
    has other weights: its rows are compared with nothing until the reference has attacked it, too.
    """
    path = RESULTS / "strength.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    old = {
        (row["model"], row["tool"]): {"commit": content["commit"]} | row for row in content["rows"]
    }
    new = {(row["model"], row["tool"]): row for row in _measured(old)}
    return [row for _, row in sorted((old | new).items())]


def _measured(old: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the pieces that are here; ``old`` lends the verdicts of references."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted(PIECES.glob("*.json")):
        content = json.loads(path.read_text())
        if content["source"] in ("", _source(content["tool"])):
            key = (content["model"], content["tool"])
            found.setdefault(key, {})[content["start"]] = content
    verdicts = {key: _verdicts({0: row}) for key, row in old.items() if "fooled" in row}
    verdicts |= {key: _verdicts(pieces) for key, pieces in found.items()}
    weights = {key: row.get("weights", "") for key, row in old.items()}
    weights |= {key: pieces[min(pieces)].get("weights", "") for key, pieces in found.items()}
    rows = []
    for (name, tool), pieces in sorted(found.items()):
        ours, theirs = weights[name, tool], weights.get((name, "reference"), "")
        is_same = bool(CASES[name].file) or (ours == theirs != "")
        other = verdicts.get((name, "reference")) if is_same else None
        rows.append(_row(name, tool, pieces, verdicts[name, tool], other) | {"weights": ours})
    return rows


def _verdicts(pieces: dict[int, dict[str, Any]]) -> dict[int, bool]:
    """Sample -> fooled."""
    return {
        start + i: mark == "1"
        for start, content in pieces.items()
        for i, mark in enumerate(content["fooled"])
    }


def _row(
    name: str,
    tool: str,
    pieces: dict[int, dict[str, Any]],
    own: dict[int, bool],
    other: dict[int, bool] | None,
) -> dict[str, Any]:
    n = len(own)
    forward = sum(p["forward"] for p in pieces.values())
    backward = sum(p["backward"] for p in pieces.values())
    row = {
        "model": name,
        "kind": CASES[name].kind,
        "threat": CASES[name].threat,
        "used_for": "choosing" if name in CHOSEN_ON else "checking",
        "tool": tool,
        "n": n,
        "robust_accuracy": round(1 - sum(own.values()) / n, 4),
        "passes_per_sample": round((forward + backward) / n, 1),
        "forward_per_sample": round(forward / n, 1),
        "seconds": round(sum(p["seconds"] for p in pieces.values()), 1),
        "load": round(max(p["load"] for p in pieces.values()), 1),
        "commit": max(p.get("commit", commit()) for p in pieces.values()),
        "fooled": "".join(str(int(own[i])) for i in sorted(own)),
    }
    if all("search" in p for p in pieces.values()):
        row["search_passes_per_sample"] = round(sum(p["search"] for p in pieces.values()) / n, 1)
    if other is None or tool == "reference":
        return row
    shared = sorted(set(own) & set(other))
    return row | {
        "n_shared": len(shared),
        "robust_accuracy_shared": round(sum(not own[i] for i in shared) / max(1, len(shared)), 4),
        "reference_shared": round(sum(not other[i] for i in shared) / max(1, len(shared)), 4),
        "only_this_broke": [i for i in shared if own[i] and not other[i]],
        "only_reference_broke": [i for i in shared if other[i] and not own[i]],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as lines."""
    for row in rows:
        name = f"{row['model']:28} {row['tool']:22} n {row['n']:5}"
        cost = f"passes {row['passes_per_sample']:9.1f} {row['seconds']:8.1f} s"
        print(f"{name} robust {row['robust_accuracy']:.3f} {cost}", _compared(row))


def _compared(row: dict[str, Any]) -> str:
    if "n_shared" not in row:
        return ""
    both = f"{row['robust_accuracy_shared']:.3f} against {row['reference_shared']:.3f}"
    missed, more = row["only_reference_broke"], row["only_this_broke"]
    return f"shared {row['n_shared']}: {both}, missed {missed}, more {more}"


def main() -> None:
    """Measure what is asked for and not there yet; ``--collect`` writes ``strength.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tools", nargs="*", default=["quick", "standard"])
    parser.add_argument("--n", type=int, default=1000, help="samples per network")
    parser.add_argument("--piece", type=int, default=PIECE, help="samples attacked together")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--autoattack", type=Path, help="a checkout of fra31/auto-attack")
    parser.add_argument("--collect", action="store_true", help="write the results, measure nothing")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    known = tools(options.autoattack)
    if unknown := set(options.tools) - set(known):
        parser.error(f"unknown tools {sorted(unknown)}; there are {sorted(known)}")
    for name in [] if options.collect else options.models:
        for tool in options.tools:
            measure(name, tool, known[tool], options.n, options.piece)
    rows = collect()
    show(rows)
    packages = ("torchattacks", "adversarial-robustness-toolbox")
    settings = {"chosen_on": list(CHOSEN_ON), "peers": versions(*packages)}
    if options.collect:
        write("strength", settings, rows)


if __name__ == "__main__":
    main()
