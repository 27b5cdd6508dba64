"""Holdfast: can an attacker change your model's answer?

>>> report = holdfast.audit(model, (x, y), "linf:8/255")
>>> report.robust_accuracy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast._version import __version__

if TYPE_CHECKING:
    from holdfast.attacks.apgd import APGD
    from holdfast.attacks.carlini_wagner import CarliniWagner
    from holdfast.attacks.fgsm import FGSM
    from holdfast.attacks.pgd import PGD
    from holdfast.attacks.square import Square
    from holdfast.auditing import audit
    from holdfast.defenses.trades import TRADES
    from holdfast.errors import HoldfastError
    from holdfast.evaluation.distances import minimal_distances
    from holdfast.hardening.frontier import frontier
    from holdfast.hardening.harden import harden
    from holdfast.model import Model
    from holdfast.perturbations.ball import Ball
    from holdfast.plan import Budget, Plan
    from holdfast.proving import bounds, certified_radius, smooth
    from holdfast.reports.report import Report
    from holdfast.threat import Access, Domain, Goal, parse_threat

_HOMES = {
    "TRADES": "holdfast.defenses.trades",
    "minimal_distances": "holdfast.evaluation.distances",
    "frontier": "holdfast.hardening.frontier",
    "harden": "holdfast.hardening.harden",
    "smooth": "holdfast.proving",
    "certified_radius": "holdfast.proving",
    "bounds": "holdfast.proving",
    "APGD": "holdfast.attacks.apgd",
    "FGSM": "holdfast.attacks.fgsm",
    "PGD": "holdfast.attacks.pgd",
    "Access": "holdfast.threat",
    "Ball": "holdfast.perturbations.ball",
    "Budget": "holdfast.plan",
    "CarliniWagner": "holdfast.attacks.carlini_wagner",
    "Domain": "holdfast.threat",
    "Goal": "holdfast.threat",
    "HoldfastError": "holdfast.errors",
    "Model": "holdfast.model",
    "Plan": "holdfast.plan",
    "Report": "holdfast.reports.report",
    "Square": "holdfast.attacks.square",
    "audit": "holdfast.auditing",
    "parse_threat": "holdfast.threat",
}

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "TRADES",
    "Access",
    "Ball",
    "Budget",
    "CarliniWagner",
    "Domain",
    "Goal",
    "HoldfastError",
    "Model",
    "Plan",
    "Report",
    "Square",
    "__version__",
    "audit",
    "bounds",
    "certified_radius",
    "frontier",
    "harden",
    "minimal_distances",
    "parse_threat",
    "smooth",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import holdfast`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
