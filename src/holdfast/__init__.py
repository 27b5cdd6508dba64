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
    from holdfast.errors import HoldfastError
    from holdfast.model import Model
    from holdfast.perturbations.ball import Ball
    from holdfast.plan import Budget, Plan
    from holdfast.reports.report import Report
    from holdfast.threat import Access, Domain, Goal, parse_threat

_HOMES = {
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
    "parse_threat",
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
