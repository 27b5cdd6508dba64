"""Running plans in tests, and reading what they left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from holdfast.engine import journal
from holdfast.engine.run import run
from holdfast.model import Model
from holdfast.plan import Plan
from holdfast.record import Attempt, Clean, Outcome

STAGES = (
    {"attack": "apgd", "loss": "ce", "steps": 12},
    {"attack": "apgd", "loss": "dlr", "steps": 8, "n_targets": 3},
    {"attack": "square", "queries": 40},
)
EPS = "linf:0.12"  # breaks about half of the digits: every stage has work


def plan(**options):
    return Plan(**{"threats": (EPS,), "stages": STAGES, "curve_steps": 3, **options})


def finish(the_plan: Plan, f, data, directory: Path, threats=()):
    model = f if isinstance(f, Model) else Model(f)
    return list(run(the_plan, model, data, directory, threats))


def result(directory: Path) -> dict:
    """What a run says of every sample, by the sample's own key: verdict, passes, found bytes."""
    records = journal.read(directory)
    clean = {r.sample: r for r in records if isinstance(r, Clean)}
    found: dict = {}
    for r in records:
        if isinstance(r, Attempt):
            one = found.setdefault((r.threat, clean[r.sample].key), {"jobs": {}})
            one["jobs"][(r.stage, r.target, r.restart)] = (
                r.outcome,
                r.forward,
                r.backward,
                round(r.margin, 12),
            )
            if r.outcome is Outcome.BROKEN:
                x_adv = load_file(journal.adversarial_path(directory, r.threat))["x_adv"]
                one["x_adv"] = np.asarray(x_adv[r.sample]).tobytes()
    return found
