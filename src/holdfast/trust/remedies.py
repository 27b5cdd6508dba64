"""From doubts to stages: which routes help, tried on a few samples before they are used on all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast import registry
from holdfast.attacks.pgd import PGD
from holdfast.engine.cascade import Step
from holdfast.errors import ModelCrash
from holdfast.record import Added
from holdfast.trust.base import Doubt
from holdfast.trust.probe import PATH_STEPS, Path, Probe
from holdfast.trust.routes import route
from holdfast.trust.routes._base import Way

_FEW = 16
_ALMOST = 0.15  # of the way that the best route is ahead
_MOST = 2  # routes that are used on all samples
_CHEAP = 2  # forward passes per step, up to which a route also gets the targeted attacks
_CERTAIN = ("zero_gradients", "hard_steps", "inner_solver", "randomness", "saturated_softmax")
"""Checks that are acted on even where a short trial gains nothing."""

Written = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route that may help.

    Attributes:
        route: As :func:`holdfast.trust.routes.route` reads it; ``restarts`` is no route.
        because: The checks that ask for it.
        directory: The run's, for routes with files.
    """

    route: Written
    because: tuple[str, ...]
    directory: str = ""

    def cost(self, draws: int) -> int:
        """Passes per step; a substitute's own count as well, so that it is the second choice."""
        own = sum(self.way.cost(draws, 1)) if self.way else 2 * draws
        return own + 2 * ("surrogate" in json.dumps(self.route))

    @property
    def way(self) -> Way | None:
        """The route itself."""
        return (
            None
            if self.route["name"] == "restarts"
            else route(directory=self.directory, **self.route)
        )


def candidates(
    doubts: Sequence[tuple[str, Doubt]], is_random: bool, directory: str
) -> list[Candidate]:
    """Every route that a doubt asks for, once; and the combinations that stand to reason.

    Averages over neighbours are taken of the smooth stand-ins where there are any, and every route
    through a random model averages over its answers.
    """
    wanted: dict[str, tuple[Written, list[str]]] = {}
    plain = [r for _, d in doubts for r in d.remedies]
    smooth = next((r for r in plain if r["name"] == "straight_through"), None)
    draws = next((r["draws"] for r in plain if r["name"] == "expectation"), None)
    for check, doubt in doubts:
        for remedy in doubt.remedies:
            for written in _combined(remedy, smooth):
                if is_random and remedy["name"] == "neighbours":
                    continue  # the model's own noise smooths it
                if is_random and draws and written["name"] not in ("expectation", "restarts"):
                    written = {"name": "expectation", "draws": draws, "inner": written}
                key = json.dumps(written, sort_keys=True)
                wanted.setdefault(key, (written, []))[1].append(check)
    return [Candidate(written, tuple(because), directory) for written, because in wanted.values()]


def _combined(remedy: Written, smooth: Written | None) -> list[Written]:
    if remedy["name"] == "neighbours" and smooth is not None:
        return [remedy, {**remedy, "inner": smooth}]
    return [remedy]


def chosen(probe: Probe, found: Sequence[Candidate]) -> list[Candidate]:
    """The routes that got furthest in a short attack on a few samples, best first.

    Where none gets further than the model's own gradients, those that certain checks ask for are
    used all the same: one of them, the furthest.
    """
    if not found:
        return []
    few = probe.few(_FEW)
    own = _reach(few.attacked(_trial()))
    reached = [(c, _reached(few, c)) for c in found if c.route["name"] != "restarts"]
    tried = sorted(((c, r) for c, r in reached if r is not None), key=lambda pair: pair[1])[::-1]
    better = [pair for pair in tried if _is_further(pair[1], own)]
    if not better:
        better = [p for p in tried if any(check in _CERTAIN for check in p[0].because)][:1]
    restarts = [c for c in found if c.route["name"] == "restarts"]
    return _thrifty(better, own, probe.model.draws)[:_MOST] + restarts


def _thrifty(
    tried: Sequence[tuple[Candidate, tuple[float, float]]], own: tuple[float, float], draws: int
) -> list[Candidate]:
    """The cheapest of those that get almost as far as the best; then the best."""
    if not tried:
        return []
    share, margin = tried[0][1]
    slack = _ALMOST * abs(margin - own[1])
    close = [c for c, (s, m) in tried if s >= share - _ALMOST and m >= margin - slack]
    cheapest = min(close, key=lambda c: c.cost(draws))
    return [cheapest, *(c for c, _ in tried if c.route["name"] != cheapest.route["name"])]


def _trial() -> PGD:
    return PGD(steps=PATH_STEPS, loss="margin")


def _reached(few: Probe, candidate: Candidate) -> tuple[float, float] | None:
    """How far a route gets; None where the model cannot run by it."""
    try:
        return _reach(few.attacked(_trial(), candidate.way))
    except (ModelCrash, RuntimeError, TypeError, ValueError):
        return None


def _reach(path: Path) -> tuple[float, float]:
    """Share fooled, then the mean of the largest margins."""
    return float((path.best > 0).float().mean()), float(path.best.mean())


def _is_further(reach: tuple[float, float], own: tuple[float, float]) -> bool:
    return reach[0] > own[0] or (reach[0] == own[0] and reach[1] > own[1] + 0.05 * abs(own[1]))


def for_plan(picked: Sequence[Candidate]) -> tuple[Written, list[Candidate]]:
    """The route of the plan's own attacks in a model without gradients, and what is left."""
    found = [c for c in picked if c.way is not None]
    return (found[0].route, found[1:]) if found else ({}, [])


def stages(probe: Probe, picked: Sequence[Candidate], first: int, norm: str) -> tuple[Added, ...]:
    """The attacks to add: along each route an untargeted one, and targeted ones where cheap."""
    added: list[Added] = []
    for candidate in picked:
        for attack, options in _attacks(probe, candidate, norm):
            stage = first + len(added)
            added.append(_added(stage, attack, options, candidate))
    return tuple(added)


def _attacks(probe: Probe, candidate: Candidate, norm: str) -> list[tuple[str, dict[str, Any]]]:
    name = "pgd" if norm == "l0" else "apgd"
    loss = "ce" if "rescaled" in json.dumps(candidate.route) else "margin"
    if candidate.way is None:
        return [(name, {"loss": loss, "steps": 100, "restarts": 5})]
    found: list[tuple[str, dict[str, Any]]] = [(name, {"loss": loss, "steps": 100})]
    forward, _ = candidate.way.cost(probe.model.draws, 1)
    n_targets = min(9, probe.model.n_classes - 1)
    if forward <= _CHEAP and n_targets > 1 and not bool((probe.goal >= 0).any()):
        found.append((name, {"loss": "dlr", "steps": 100, "n_targets": n_targets}))
    return found


def _added(stage: int, attack: str, options: dict[str, Any], candidate: Candidate) -> Added:
    inner = ", ".join(f"{key}={value}" for key, value in options.items())
    way = candidate.way
    label = f"{attack}({inner})" + (f", {way.describe()}" if way else "")
    return Added(
        stage=stage,
        attack=attack,
        options=options,
        route={} if way is None else candidate.route,
        label=label,
        because=candidate.because,
    )


def step(added: Added, directory: str) -> Step:
    """The stage as the engine runs it."""
    way = route(directory=directory, **added.route) if added.route else None
    return Step(added.stage, added.label, registry.attack(added.attack, **added.options), way)
