"""A quantised network on digits, and runs on it."""

from __future__ import annotations

from pathlib import Path

import torch

from holdfast.contracts.masking import QuantisedInput as Quantised
from holdfast.data import ArrayData
from holdfast.demo import train
from holdfast.engine import journal
from holdfast.modalities import load
from holdfast.plan import Plan
from holdfast.record import Attempt, Clean, Examined

__all__ = ["EPS", "Quantised", "digits_net", "plan", "result"]

EPS = "linf:0.25"
STAGES = ({"attack": "pgd", "loss": "ce", "steps": 4},)


def digits_net():
    torch.set_num_threads(1)
    seen, unseen = load("digits:train"), load("digits:test")
    net = train(*seen.fetch(range(len(seen))))
    return net, ArrayData(*unseen.fetch(range(12)))


def plan(**options) -> Plan:
    return Plan(**{"threats": (EPS,), "stages": STAGES, "curve_steps": 0, **options})


def result(directory: Path) -> dict:
    """Attempts by the sample's own key, and what the looks found."""
    records = journal.read(directory)
    key = {r.sample: r.key for r in records if isinstance(r, Clean)}
    found = {
        (key[r.sample], r.stage, r.target, r.restart): (r.outcome, r.forward, round(r.margin, 9))
        for r in records
        if isinstance(r, Attempt)
    }
    looks = {r.round: (r.checks, r.added) for r in records if isinstance(r, Examined)}
    return {"attempts": found, "looks": looks}
