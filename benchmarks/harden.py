"""What hardening gives within a budget: one case per claim, judged on test images.

A case trains through ``holdfast.harden`` and is one piece under ``build/harden``: stop at any time,
go on with the same command. Nothing is chosen on the test images.

    python benchmarks/harden.py mnist            S(1,7) from scratch, linf:0.3, 20 minutes
    python benchmarks/harden.py collapse digits  two cases of about a minute
    python benchmarks/harden.py --collect        write results/harden.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from _common import RESULTS, ROOT, commit, write
from _judging import audited, is_right, rate, test_images, training_images, under_pgd, verified
from _models import small

PIECES = ROOT / "build" / "harden"
N_TEST = 1000

Found = dict[str, Any]


# ---------------------------------------------------------------------- twenty minutes each


def mnist(seed: int, folder: Path) -> Found:
    """MNIST, the small network of the literature from scratch, linf:0.3, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.3", seed, folder)


def certified_small(seed: int, folder: Path) -> Found:
    """MNIST, bounds trained at twice linf:0.1 as in the paper, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.1", seed, folder, recipe="ibp(radius=2.0)")


def certified_large(seed: int, folder: Path) -> Found:
    """MNIST, bounds trained at 4/3 of linf:0.3 as in the paper, twenty minutes."""
    return _twenty_minutes("mnist", "linf:0.3", seed, folder, recipe="ibp(radius=1.3333)")


def _twenty_minutes(data: str, threat: str, seed: int, folder: Path, **options: Any) -> Found:
    import holdfast

    result = holdfast.harden(
        small(1, 7),
        training_images(data),
        threat=threat,
        budget="20min",
        from_scratch=True,
        test=test_images(data, N_TEST),
        seed=seed,
        out=folder / "run",
        **options,
    )
    torch.save(result.module.state_dict(), folder / "weights.pt")
    return {"threat": threat, **_cost(result.card)} | judged(result.module, data, threat)


def judged(net: nn.Module, data: str, threat: str) -> Found:
    """Clean and robust accuracy under ``standard``, and what is proven, on the test images."""
    x, y = test_images(data, N_TEST)
    eps = float(threat.partition(":")[2])
    return audited(net.eval(), x, y, threat) | verified(net, x, y, eps)


def _cost(card: Any) -> Found:
    return {
        "recipe": card.recipe,
        "recipe_at_end": card.recipe_at_end,
        "reasons": list(card.reasons),
        "training_s": round(card.training_seconds),
        "epochs": round(card.epochs, 2),
        "passes": card.passes,
        "warnings": [finding.code for finding in card.warnings],
    }


# ---------------------------------------------------------------------- a collapse, provoked


def collapse(seed: int, folder: Path) -> Found:
    """Collapse provoked: FGSM with a random start, MNIST linf:0.3, step 0.375, five epochs."""
    return _collapse(60_000, 5, seed, folder)


def collapse_short(seed: int, folder: Path) -> Found:
    """The same collapse with less data: six epochs of 20,000 images."""
    return _collapse(20_000, 6, seed, folder)


def _collapse(n: int, epochs: int, seed: int, folder: Path) -> Found:
    """The plain script, then ``harden`` with the same data, recipe and processor seconds.

    ``harden``'s clock counts processor seconds here, so that other programs do not matter.
    """
    import lightning_fabric  # noqa: F401  a slow import, which is no training

    import holdfast

    x, y = training_images("mnist")
    x, y = x[:n], y[:n]
    began = time.process_time()
    plain = plain_single_step(x, y, epochs, seed)
    plain_s = time.process_time() - began
    with patch("time.monotonic", time.process_time), patch("time.perf_counter", time.process_time):
        began = time.process_time()
        result = holdfast.harden(
            small(1, 7),
            (x, y),
            threat="linf:0.3",
            recipe="fgsm_rs(step_size=1.25)",
            from_scratch=True,
            budget=f"{plain_s:.2f}s",
            audit=False,
            seed=seed,
            out=folder / "run",
        )
        own_s = time.process_time() - began
    both = {"plain": plain, "harden": result.module.eval()}
    return {
        "threat": "linf:0.3",
        **_cost(result.card),
        "plain_cpu_s": round(plain_s, 1),
        "harden_cpu_s": round(own_s, 1),
        **{f"{name}_{k}": v for name, net in both.items() for k, v in _under_pgd50(net).items()},
        "alarms": _alarms(folder / "run"),
    }


def plain_single_step(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """FGSM with a random start as a short script has it: Adam, batches of 200, a ramp."""
    torch.manual_seed(seed)
    net, eps = small(1, 7), 0.3
    optimiser = torch.optim.Adam(net.parameters())
    total, k = epochs * len(x) // 200, 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(200):
            done, k = k / total, k + 1
            optimiser.param_groups[0]["lr"] = 3e-3 * min(done / 0.4, (1 - done) / 0.6)
            radius = eps * min(1.0, 2 * done)
            start = x[rows] + (2 * torch.rand_like(x[rows]) - 1) * radius
            start = start.clamp(0, 1).requires_grad_(True)
            loss = nn.functional.cross_entropy(net(start), y[rows])
            (gradient,) = torch.autograd.grad(loss, start)
            change = (start.detach() + 1.25 * radius * gradient.sign() - x[rows]).clamp(
                -radius, radius
            )
            optimiser.zero_grad()
            nn.functional.cross_entropy(net((x[rows] + change).clamp(0, 1)), y[rows]).backward()
            optimiser.step()
    return net.eval()


def _under_pgd50(net: nn.Module) -> Found:
    x, y = test_images("mnist", N_TEST)
    held = under_pgd(net, x, y, "linf:0.3")
    return {"clean": rate(is_right(net, x, y)), "pgd50": rate(held), "n_pgd50": len(y)}


def _alarms(run: Path) -> list[Found]:
    """Which alarms rang, and after how many epochs; the epoch of the last look before."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rung = [line for line in lines if line["what"] == "rolled_back"]
    return [{k: line[k] for k in ("code", "epoch", "recipe", "seconds")} for line in rung]


# ---------------------------------------------------------------------- digits


def digits(seed: int, folder: Path) -> Found:
    """The digits model of make audit within sixty seconds, judged on all its 450 test images."""
    import holdfast
    from holdfast import demo
    from holdfast.modalities import load

    seen, unseen = (load(f"digits:{part}") for part in ("train", "test"))
    train, test = seen.fetch(range(len(seen))), unseen.fetch(range(len(unseen)))
    threat, net = demo.THREATS[0], demo.train(*train)
    began = time.monotonic()
    result = holdfast.harden(
        net, train, threat=threat, budget="60s", test=test, seed=seed, out=folder / "run"
    )
    spent = time.monotonic() - began
    before, after = (audited(m.eval(), *test, threat) for m in (net, result.module))
    card = _cost(result.card)
    sides = {f"{k}_before": before[k] for k in ("clean", "standard", "standard_interval")}
    return {"threat": threat, "wall_s": round(spent, 1), **card, **sides, **after}


CASES: dict[str, Callable[[int, Path], Found]] = {
    "mnist": mnist,
    "certified-0.1": certified_small,
    "certified-0.3": certified_large,
    "collapse": collapse,
    "collapse-short": collapse_short,
    "digits": digits,
}


ASKED = {
    "mnist": "at least 86% robust and 97.5% clean",
    "certified-0.1": "at least 94% proven",
    "certified-0.3": "at least 82% proven",
    "collapse": "more than 65% under PGD-50",
    "collapse-short": "more than 65% under PGD-50",
    "digits": "30 points more robust, at most 3 less clean",
}


def said(found: Found) -> str:
    """What was measured, in a line."""
    name = found["case"]
    if name.startswith("collapse"):
        own = f"{found['harden_pgd50']:.1%} in {found['harden_cpu_s']:.0f} s"
        alarms = ", ".join(f"{alarm['epoch']:.1f}" for alarm in found["alarms"])
        script = f"{found['plain_pgd50']:.1%} in {found['plain_cpu_s']:.0f} s"
        return f"{own}, gone back at epoch {alarms}; the plain script {script}"
    low, high = found["standard_interval"]
    robust = f"{found['standard']:.1%} [{low:.1%}, {high:.1%}]"
    if name == "digits":
        before = f"robust {found['standard_before']:.1%}, clean {found['clean_before']:.1%} before"
        return f"{robust}, clean {found['clean']:.1%}; {before}"
    if name.startswith("certified"):
        proven = f"{found['verified_interval']:.1%} by intervals, {found['verified_crown']:.1%}"
        return f"{proven} by CROWN; at most {robust}; clean {found['clean']:.1%}"
    return f"{robust}, clean {found['clean']:.1%}"


def piece(name: str, seed: int) -> Found:
    """One case with one seed; kept when done."""
    folder = PIECES / f"{name}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    found = {"case": name, "seed": seed, **CASES[name](seed, folder)}
    found |= {"load": round(os.getloadavg()[0], 1), "commit": commit()}
    done.write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def collect() -> list[Found]:
    """All pieces that were measured; what was written before and not measured again stays."""
    path = RESULTS / "harden.json"
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    new = [json.loads(p.read_text()) for p in sorted(PIECES.glob("*/measured.json"))]
    rows = {(row["case"], row["seed"]): row for row in [*old, *new] if row["case"] in CASES}
    return [row | _words(row) for _, row in sorted(rows.items())]


def _words(found: Found) -> Found:
    name = found["case"]
    words = {"what": (CASES[name].__doc__ or "").strip(), "asked": ASKED[name]}
    return words | {"measured": said(found), "again": f"harden.py {name} --seeds {found['seed']}"}


def main() -> None:
    """Run what is asked for, or collect what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--collect", action="store_true", help="write results/harden.json")
    asked = parser.parse_args()
    if unknown := [name for name in asked.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; cases: {', '.join(CASES)}")
    for name in asked.cases:
        for seed in asked.seeds:
            piece(name, seed)
    if asked.collect:
        write("harden", {"n_test": N_TEST}, collect())


if __name__ == "__main__":
    main()
