"""Smallest changes as a page, as JSON, and as changed inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from holdfast.evaluation.distances import MinimalDistances
from holdfast.evaluation.statistics import Rate
from holdfast.reports import _charts
from holdfast.reports.html import environment
from holdfast.reports.results import Curve

NAMES = {
    "linf": "largest change of one coordinate",
    "l2": "Euclidean length of the change",
    "l1": "sum of the changes",
    "l0": "number of changed coordinates",
}
_FRAGILE = 10  # samples that fall most easily, as listed


def write(directory: Path, model: str, data: str, found: Sequence[MinimalDistances]) -> None:
    """``distances.html``, ``distances.json`` and one ``changed-<norm>.npz`` per norm."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"model": model, "data": data, "norms": [one.to_dict() for one in found]}
    page, machine = directory / "distances.html", directory / "distances.json"
    machine.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(render(model, data, found), encoding="utf-8")
    for one in found:
        rows = (one.distance.isfinite() & (one.distance > 0)).nonzero().squeeze(1)
        x_adv = one.x_adv[rows].cpu().numpy()
        np.savez_compressed(directory / f"changed-{one.norm}.npz", sample=rows.numpy(), x_adv=x_adv)


def render(model: str, data: str, found: Sequence[MinimalDistances]) -> str:
    """The page: no scripts, nothing from elsewhere."""
    template = environment().get_template("distances.html")
    return template.render(model=model, data=data, parts=[_part(one) for one in found])


def _part(one: MinimalDistances) -> dict[str, Any]:
    finite = one.distance[one.distance.isfinite()].sort().values
    quarters = [finite[int(q * (len(one.distance) - 1))] for q in _reached(finite, one)]
    order = one.distance.argsort(stable=True).tolist()
    fragile = [i for i in order if 0 < one.distance[i] < math.inf][:_FRAGILE]
    return {
        "norm": one.norm,
        "name": NAMES[one.norm],
        "n": len(one.distance),
        "clean": one.robust_accuracy(0.0),
        "median": one.median if math.isfinite(one.median) else None,
        "n_withstood": int(one.distance.isinf().sum()),
        "passes": one.passes,
        "quarters": [f"{float(q):.4g}" for q in quarters],
        "fragile": [(i, f"{one.distance[i]:.4g}", one.found_by[i]) for i in fragile],
        "chart": _chart(one),
    }


def _reached(finite: Any, one: MinimalDistances) -> list[float]:
    """Those quarters of the samples for which a change was found."""
    return [q for q in (0.25, 0.5, 0.75) if int(q * (len(one.distance) - 1)) < len(finite)]


def _chart(one: MinimalDistances) -> Markup:
    eps, accuracy = one.curve()
    n = len(one.distance)
    rates = [Rate.of(round(value * n), n) for value in accuracy]
    lower, upper = (np.array([getattr(r, end) for r in rates]) for end in ("lower", "upper"))
    alt = f"Accuracy against the size of the change in {one.norm}"
    return _charts.curve(Curve(eps, accuracy, lower, upper), f"{one.norm}: {NAMES[one.norm]}", alt)
