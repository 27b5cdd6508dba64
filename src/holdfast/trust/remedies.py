"""From doubts to stages: which routes help, tried on a few samples before they are used on all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast import registry
from holdfast.attacks.annealed import Annealed
from holdfast.attacks.base import Attack
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
_ANNEALING = 100  # steps of its trial
_STARTS, _NARROWING = (1.0, 0.25), 100  # widths of stand-ins that grow narrower along the search
_NOISY_TARGETS = 3
_AGAIN = 2  # restarts of the annealed search, where restarts are asked for
_LONGER = 3  # times as many steps as other attacks in its stage
_CERTAIN = ("zero_gradients", "hard_steps", "inner_solver", "randomness", "saturated_softmax")
"""Checks that are acted on even where a short trial gains nothing."""
_SEARCHES = ("annealed", "restarts")
"""Remedies that are attacks of another kind, not routes."""

Written = dict[str, Any]
Reach = tuple[float, float]
"""Share fooled, then the mean of the largest margins."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route that may help, or another way to search.

    Attributes:
        route: As :func:`holdfast.trust.routes.route` reads it; empty: the model's own gradients.
        because: The checks that ask for it.
        directory: The run's, for routes with files.
        search: ``annealed`` or ``restarts``; empty: the attacks that other routes get, too.
        restarts: Of the annealed search.
    """

    route: Written
    because: tuple[str, ...]
    directory: str = ""
    search: str = ""
    restarts: int = 1

    def cost(self, draws: int) -> int:
        """Passes per step; a substitute's own count as well, so that it is the second choice."""
        own = sum(self.way.cost(draws, 1)) if self.way else 2 * draws
        length = _LONGER if self.search == "annealed" else 1
        return length * own + 2 * ("surrogate" in json.dumps(self.route))

    @property
    def way(self) -> Way | None:
        """The route itself."""
        return route(directory=self.directory, **self.route) if self.route else None

    @property
    def is_narrowing(self) -> bool:
        """Whether it goes through a stand-in that grows narrower along the search."""
        return "narrowing" in self.route

    @property
    def family(self) -> str:
        """What it does in the end: noise smooths a surface at one step or over many."""
        return "neighbours" if self.search == "annealed" else str(self.route.get("name"))

    def trial(self) -> Attack:
        """A short attack."""
        return Annealed(steps=_ANNEALING) if self.search == "annealed" else _trial()


def candidates(
    doubts: Sequence[tuple[str, Doubt]], is_random: bool, directory: str, routes_only: bool = False
) -> list[Candidate]:
    """Every remedy that a doubt asks for, once; ``routes_only``: no other searches.

    Every route through a random model averages over its answers; its own noise is enough.
    """
    wanted: dict[str, tuple[Written, list[str]]] = {}
    draws = next(
        (r["draws"] for _, d in doubts for r in d.remedies if r["name"] == "expectation"), None
    )
    for check, doubt in doubts:
        for remedy in doubt.remedies:
            name = remedy["name"]
            if (is_random and name == "neighbours") or (routes_only and name in _SEARCHES):
                continue
            written = remedy
            if is_random and draws and name not in ("expectation", *_SEARCHES):
                written = {"name": "expectation", "draws": draws, "inner": remedy}
            key = json.dumps(written, sort_keys=True)
            wanted.setdefault(key, (written, []))[1].append(check)
    return [_candidate(written, tuple(because), directory) for written, because in wanted.values()]


def _candidate(written: Written, because: tuple[str, ...], directory: str) -> Candidate:
    if written["name"] in _SEARCHES:
        return Candidate({}, because, directory, written["name"])
    return Candidate(written, because, directory)


def chosen(probe: Probe, found: Sequence[Candidate]) -> list[Candidate]:
    """The remedies that got furthest in a short attack on a few samples, best first.

    Where none gets further than the model's own gradients, those that certain checks ask for are
    used all the same: one of them, the furthest.
    """
    if not found:
        return []
    few = probe.few(_FEW)
    own = {name: _reach(few.attacked(attack)) for name, attack in _own(found)}
    pairs = _tried(few, found)
    pairs += _tried(few, list(_combined([c for c, _ in pairs])))
    tried = sorted(pairs, key=lambda pair: pair[1])[::-1]
    better = [pair for pair in tried if _is_further(pair[1], own[pair[0].search])]
    if not better:
        better = [p for p in tried if any(check in _CERTAIN for check in p[0].because)][:1]
    picked = _thrifty(better, own[""], probe.model.draws)[:_MOST]
    return picked + [_restarted(c, picked) for c in found if c.search == "restarts"]


def _restarted(restarts: Candidate, picked: Sequence[Candidate]) -> Candidate:
    """Restarts of the search that got furthest, where that is one by noise."""
    best = next((c for c in picked if c.search == "annealed"), None)
    if best is None:
        return restarts
    return Candidate(best.route, restarts.because, best.directory, "annealed", _AGAIN)


def _own(found: Sequence[Candidate]) -> Iterator[tuple[str, Attack]]:
    """What the model's own gradients are tried with: as many steps as the remedy."""
    yield "", _trial()
    if any(c.search == "annealed" for c in found):
        yield "annealed", PGD(steps=_ANNEALING, loss="margin")


def _tried(few: Probe, found: Sequence[Candidate]) -> list[tuple[Candidate, Reach]]:
    """Furthest first."""
    reached = [(c, _reached(few, c)) for c in found if c.search != "restarts"]
    return sorted(((c, r) for c, r in reached if r is not None), key=lambda pair: pair[1])[::-1]


def _combined(tried: Sequence[Candidate]) -> Iterator[Candidate]:
    """Noise around the smooth stand-in that got furthest, where there is one.

    Along many small steps it grows narrower: a wide one shows the way, a narrow one what is true.
    """
    smooth = next((s for s in (_stand_in(c.route) for c in tried) if s), None)
    if smooth is None:
        return
    for c in tried:
        if c.search == "annealed":
            for width in _STARTS:
                narrowed = {**smooth, "width": width, "narrowing": _NARROWING}
                yield Candidate(narrowed, c.because, c.directory, c.search)
        elif c.route["name"] == "neighbours":
            yield Candidate({**c.route, "inner": smooth}, c.because, c.directory)


def _stand_in(way: Written) -> Written | None:
    """The smooth stand-in of a route, under averages over a random model's answers too."""
    inner = way.get("inner") if way.get("name") == "expectation" else way
    return inner if inner and inner.get("name") == "straight_through" else None


def _thrifty(tried: Sequence[tuple[Candidate, Reach]], own: Reach, draws: int) -> list[Candidate]:
    """The cheapest of those that get almost as far as the best; then the best of other families."""
    if not tried:
        return []
    share, margin = tried[0][1]
    slack = _ALMOST * abs(margin - own[1])
    close = [c for c, (s, m) in tried if s >= share - _ALMOST and m >= margin - slack]
    cheapest = min(close, key=lambda c: c.cost(draws))
    return [cheapest, *(c for c, _ in tried if c.family != cheapest.family)]


def _trial() -> PGD:
    return PGD(steps=PATH_STEPS, loss="margin")


def _reached(few: Probe, candidate: Candidate) -> Reach | None:
    """How far a remedy gets; None where the model cannot run by it."""
    try:
        return _reach(few.attacked(candidate.trial(), candidate.way))
    except (ModelCrash, RuntimeError, TypeError, ValueError):
        return None


def _reach(path: Path) -> Reach:
    return float((path.best > 0).float().mean()), float(path.best.mean())


def _is_further(reach: Reach, own: Reach) -> bool:
    return reach[0] > own[0] or (reach[0] == own[0] and reach[1] > own[1] + 0.05 * abs(own[1]))


def for_plan(picked: Sequence[Candidate]) -> tuple[Written, list[Candidate]]:
    """The route of the plan's own attacks in a model without gradients, and what is left."""
    found = [c for c in picked if c.way is not None]
    return (found[0].route, found[1:]) if found else ({}, [])


def stages(probe: Probe, picked: Sequence[Candidate], first: int, norm: str) -> tuple[Added, ...]:
    """The attacks to add: along each route an untargeted one, and targeted ones where cheap.

    Where those are noisy steps through a stand-in that grows narrower, no others are targeted.
    """
    added: list[Added] = []
    for i, candidate in enumerate(picked):
        has_targeted = any(c.is_narrowing for c in picked[:i])
        for attack, options in _attacks(probe, candidate, norm)[: 1 if has_targeted else None]:
            stage = first + len(added)
            added.append(_added(stage, attack, options, candidate))
    return tuple(added)


def _attacks(probe: Probe, candidate: Candidate, norm: str) -> list[tuple[str, dict[str, Any]]]:
    name = "pgd" if norm == "l0" else "apgd"
    if candidate.search == "annealed":
        again = {"restarts": candidate.restarts} if candidate.restarts > 1 else {}
        noisy: dict[str, Any] = {"steps": _LONGER * 100}
        n_targets = _n_targets(probe, _NOISY_TARGETS) if candidate.is_narrowing else 0
        targeted = [("annealed", {**noisy, "n_targets": n_targets})] if n_targets else []
        return [("annealed", {**noisy, **again}), *targeted]
    loss = "ce" if "rescaled" in json.dumps(candidate.route) else "margin"
    if candidate.search == "restarts":
        return [(name, {"loss": loss, "steps": 100, "restarts": 5})]
    found: list[tuple[str, dict[str, Any]]] = [(name, {"loss": loss, "steps": 100})]
    forward, _ = candidate.way.cost(probe.model.draws, 1) if candidate.way else (1, 1)
    n_targets = _n_targets(probe, 9)
    if forward <= _CHEAP and n_targets:
        found.append((name, {"loss": "dlr", "steps": 100, "n_targets": n_targets}))
    return found


def _n_targets(probe: Probe, most: int) -> int:
    """Classes worth aiming at; 0 where there is one only, or the goal is given."""
    n = min(most, probe.model.n_classes - 1)
    return 0 if n < 2 or bool((probe.goal >= 0).any()) else n


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
