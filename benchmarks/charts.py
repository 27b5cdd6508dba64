"""Draw the charts of the documentation from ``results/*.json``, and the README's table of figures.

The charts follow the reader's light or dark mode.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from _common import RESULTS, ROOT

IMAGES = ROOT / "docs" / "images"
INK = "#010203"  # replaced by the reader's own text colour
OURS, OTHERS = "#2f81b7", "#9aa4ad"
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
START, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, what stands beside it, and whether it is ours."""

    label: str
    value: float
    text: str
    is_ours: bool


def draw(name: str, title: str, groups: dict[str, list[Bar]]) -> None:
    """Horizontal bars in groups, one below the other, as ``docs/images/<name>.svg``."""
    n_bars = sum(len(bars) for bars in groups.values())
    figure = Figure(figsize=(7.2, 0.55 + 0.34 * n_bars + 0.42 * len(groups)))
    ratios = [len(bars) for bars in groups.values()]
    all_axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    for axes, (heading, bars) in zip(all_axes, groups.items(), strict=True):
        _draw_group(axes, heading, bars)
    figure.tight_layout()
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(_svg(figure, title), encoding="utf-8")
    print(f"wrote docs/images/{name}.svg")


def _draw_group(axes: Any, heading: str, bars: list[Bar]) -> None:
    bars = bars[::-1]
    labels = [bar.label for bar in bars]
    colors = [OURS if bar.is_ours else OTHERS for bar in bars]
    drawn = axes.barh(labels, [bar.value for bar in bars], color=colors, height=0.72)
    texts = axes.bar_label(drawn, [bar.text for bar in bars], padding=4, fontsize=9, color=INK)
    assert len(texts) == len(bars)
    axes.set_title(heading, loc="left", fontsize=9.5, color=INK)
    axes.set_xlim(0, 1.35 * max(bar.value for bar in bars))
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    return re.sub(r"(<svg [^>]*>)", rf"\1<title>{title}</title>{STYLE}", text, count=1)


def engine_cost(result: dict[str, Any]) -> None:
    """Ratios to the bare loop."""
    groups: dict[str, list[Bar]] = {}
    for row in result["rows"]:
        bar = Bar(row["library"], row["ratio"], f"{row['ratio']:.2f}", row["library"] == "holdfast")
        groups.setdefault(row["device"].upper(), []).append(bar)
    steps = result["settings"]["steps"]
    draw("engine_cost", f"Time of PGD-{steps} on ResNet-18, bare loop = 1", groups)


def retirement(result: dict[str, Any]) -> None:
    """Passes per sample."""
    groups: dict[str, list[Bar]] = {}
    for row in result["rows"]:
        value = row["passes_per_sample"]
        bar = Bar(row["way"], value, f"{value:.1f}", row["way"] == "refilled slots")
        groups.setdefault(row["model"], []).append(bar)
    draw("retirement", "Passes per sample of APGD-100", groups)


def peers(result: dict[str, Any]) -> None:
    """Seconds, with passes and success beside them."""
    groups: dict[str, list[Bar]] = {}
    for row in result["rows"]:
        text = (
            f"{row['seconds']:.1f} s, {row['passes_per_sample']:.0f} passes, "
            f"{100 * row['success']:.1f} % fooled"
        )
        bar = Bar(row["library"], row["seconds"], text, row["library"].startswith("holdfast"))
        groups.setdefault(f"{row['attack']} on {row['model']}", []).append(bar)
    draw("peers", f"Seconds for {result['settings']['n']} images", groups)


_FIRST_PAGE = ("mnist_convex", "mnist_fgsm")  # one proven to hold, one whose gradients are masked

CHARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "engine_cost": engine_cost,
    "retirement": retirement,
    "peers": peers,
}


def load(name: str) -> dict[str, Any] | None:
    """A result, or None where it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def figures() -> str:
    """The README's table: every figure from a result file, with the command that measures it."""
    lines = ["| what | measured | command |", "|---|---|---|"]
    for what, value, command in _claims():
        lines.append(f"| {what} | {value} | `{command}` |")
    return "\n".join(lines)


def _claims() -> list[tuple[str, str, str]]:
    claims = []
    if cost := load("engine_cost"):
        for row in cost["rows"]:
            if row["library"] == "holdfast":
                what = f"time of PGD-{cost['settings']['steps']} against a bare loop"
                what += f", ResNet-18, {row['device'].upper()}"
                claims.append((what, f"{row['ratio']:.2f}", cost["command"]))
    if retired := load("retirement"):
        row = next(r for r in retired["rows"] if r["way"] == "refilled slots")
        what = f"passes of APGD-{retired['settings']['steps']} on an undefended model, "
        what += "share of a fixed batch's"
        value = f"{100 * row['share_of_fixed']:.1f} % ({row['passes_per_sample']:.1f} per sample)"
        claims.append((what, value, retired["command"]))
    if verdicts := load("verdicts"):
        command = verdicts["command"]
        claims.extend((row["what"], row["value"], command) for row in verdicts["rows"])
    if strength := load("strength"):
        claims.append(_over_all_networks(strength["rows"]))
        claims.extend(
            _against_autoattack(row)
            for row in strength["rows"]
            if row["tool"] == "standard" and row["model"] in _FIRST_PAGE
        )
    if clock := load("wall_time"):
        claims.append(_on_the_clock(clock["rows"]))
    if smallest := load("minimal_most"):
        claims.append(_smallest(smallest["rows"]))
    if proofs := load("verify_images_mnist_convex"):
        claims.extend(_between_proof_and_attack(row, proofs["command"]) for row in proofs["rows"])
    if properties := load("verify_vnn"):
        claims.append(_decided(properties["rows"]))
    if bounds := load("bounds"):
        claims.append(_beside_auto_lirpa(bounds["rows"]))
    if hardened := load("harden"):
        rows = sorted(hardened["rows"], key=lambda row: row["case"])
        claims.extend(
            (
                f"harden: {row['what'].rstrip('.')}",
                row["measured"],
                f"python benchmarks/{row['again']}",
            )
            for row in rows
            if row["case"] in _HARDENED
        )
    return claims


_HARDENED = ("digits", "mnist", "collapse", "certified-0.1")


def _between_proof_and_attack(row: dict[str, Any], command: str) -> tuple[str, str, str]:
    """What is proven of a set of images, and what attacks leave."""
    what = f"proven and not broken, {row['model']}, {row['threat']}, {row['images']} images"
    seconds = row["bounds_cpu_s"] + row["attack_cpu_s"] + row["search_cpu_s"]
    value = f"{row['verified']:.2%} to {row['not_broken']:.2%} in {seconds:.0f} CPU-seconds"
    return what, value, command


def _decided(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    """How many properties of the verification competition were decided on one core."""
    parts = [f"{r['benchmark']} {r['solved']} of {r['instances']}" for r in rows]
    wrong = sum(r["n_wrong"] for r in rows)
    what = "verification competition's properties decided on one core, CPU"
    command = "python benchmarks/verify_vnn.py BENCHMARK --cpu"
    return what, f"{', '.join(parts)}; {wrong} wrong", command


def _beside_auto_lirpa(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Seconds of CROWN and of optimised slopes as shares of auto_LiRPA's."""
    spans = []
    for method, key, how in (
        ("crown", "ratio_float32", "CROWN, both float32"),
        ("alpha-crown", "ratio", "alpha-CROWN, ours with rounding charged"),
    ):
        ratios = [r[key] for r in rows if r["method"] == method and r.get(key)]
        spans.append(f"{how}: {min(ratios):.2f} to {max(ratios):.2f} on {len(ratios)} networks")
    what = "CPU-seconds of bounds as a share of auto_LiRPA's"
    return what, "; ".join(spans), "python benchmarks/bounds.py --auto-lirpa DIR --write"


def _over_all_networks(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    """``standard`` and the reference AutoAttack on every network that both have attacked."""
    theirs = {row["model"]: row["passes_per_sample"] for row in rows if row["tool"] == "reference"}
    ours = [row for row in rows if row["tool"] == "standard" and row.get("n_shared")]
    n = sum(row["n_shared"] for row in ours)
    alone, missed = (
        sum(len(row[key]) for row in ours) for key in ("only_this_broke", "only_reference_broke")
    )
    searched, all_in = (
        sorted(theirs[row["model"]] / row[key] for row in ours)
        for key in ("search_passes_per_sample", "passes_per_sample")
    )
    what = f"`standard` beside the reference AutoAttack, {len(ours)} networks, {n} samples"
    value = f"{alone} that only ours broke, {missed} that only AutoAttack broke; its passes are "
    value += f"{searched[0]:.0f} to {searched[-1]:.0f} times those of our search, "
    value += f"{all_in[0]:.0f} to {all_in[-1]:.0f} times all that our audits ran"
    return what, value, "python benchmarks/strength.py --autoattack DIR"


def _on_the_clock(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Seconds of the reference AutoAttack for each of ours."""
    parts = [f"{row['model']} ({row['n']}) {row['times_faster']:.0f}" for row in rows]
    what = (
        "seconds of the reference AutoAttack for one of `standard`, in turn on one thread (images)"
    )
    return what, ", ".join(parts), "python benchmarks/wall_time.py --autoattack DIR"


def _smallest(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Ours against the best of the peers, over networks and norms."""
    ratios = sorted(row["ratio"] for row in rows)
    n_models = len({row["model"] for row in rows})
    what = f"median smallest change as a share of the best peer's in {rows[0]['budget']} passes, "
    what += f"{n_models} networks in linf, l2, l1 and l0, first 1,000 images (300 of CIFAR-10)"
    middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
    worse = sum(ratio > 1 for ratio in ratios)
    value = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {middle:.2f}; above 1 on {worse} of "
    value += str(len(ratios))
    command = "python benchmarks/minimal.py --advlib DIR --images 1000 --passes 200 --near 1.3 "
    return what, value, command + "--name minimal_most"


def _against_autoattack(row: dict[str, Any]) -> tuple[str, str, str]:
    """``standard`` and the reference AutoAttack, on the samples that both saw."""
    what = f"robust accuracy under `standard`, {row['model']}, {row['threat']}, {row['n']} samples"
    value = f"{row['robust_accuracy']:.3f} in {row['passes_per_sample']:.0f} passes per sample"
    if row.get("n_shared"):
        value += (
            f"; on {row['n_shared']} of them {row['robust_accuracy_shared']:.3f}, the reference "
            f"AutoAttack {row['reference_shared']:.3f}"
        )
    return what, value, "python benchmarks/strength.py --autoattack DIR"


def readme(text: str) -> str:
    """``text`` with the table between the markers brought up to date."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{figures()}\n\n{END}{after}" if rest else text


def main() -> None:
    """Draw what was measured."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, chart in CHARTS.items():
        if result := load(name):
            chart(result)
        else:
            print(f"results/{name}.json does not exist: not drawn", file=sys.stderr)
    path = Path(ROOT / "README.md")
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
