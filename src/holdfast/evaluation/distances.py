"""How small a change is enough? The smallest one known for every sample, in any norm.

No radius has to be chosen beforehand: one run gives the accuracy at every radius and the median
distance. Every distance is an upper bound: an input that was replayed and fools the model lies
there, and nearer ones may exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast import registry
from holdfast.attacks.base import Attack
from holdfast.attacks.boundary_walk import BISECTIONS as WALK_BISECTIONS
from holdfast.data import ArrayData, as_inputs, as_labels
from holdfast.engine.preflight import preflight
from holdfast.engine.random import Rng
from holdfast.engine.scan import inside, scan
from holdfast.errors import DataError, PlanError
from holdfast.evaluation import _counted
from holdfast.evaluation._nearest import CLEAN, JUDGING, LOOKING, Search, polish
from holdfast.evaluation._ranking import ASKING, CHECKING
from holdfast.evaluation.statistics import Rate
from holdfast.model import Model
from holdfast.perturbations.ball import ALIASES, SHAPES
from holdfast.threat import Access

BISECTIONS = 8  # steps of the polish: to 1/30,000 of the distance where it was close, else to 1/128
ROUNDS, PER_ROUND = 8, 40  # in l0 instead: rounds at most, and passes that there are for each
SMALLEST_BUDGET = 40
MOST_TARGETS = 5  # classes that are gone for, likeliest first
ARRIVES = {"linf": 45, "l2": 38, "l1": 65}  # passes that a run needs to get near the boundary
FOLLOWS, LONG = 0.6, 250  # l1: share of a primal-dual run, and passes that it needs to be begun
WALKS = 70  # l2: passes that a walk from a random input needs to end, if there are to be several
SHARES = {"linf": (0.5, 0.0), "l2": (0.4, 0.35), "l1": (0.35, 0.2), "l0": (0.4, 0.3)}
"""Of the passes: to look around from x, and to come back from a random input; the rest goes on.

In l0 both come back from random inputs, along the boundary and over all coordinates.
"""
PACE = {"linf": {}, "l2": {"step_size": 1.0}, "l1": {"step_size": 1.0, "loss": "margin"}}
REGION, STEP_AFAR = 0.8, 0.15  # l0: the walk's first trust region, the other run's first step size


@dataclass(frozen=True)
class MinimalDistances:
    """The smallest change known for each of ``n`` samples.

    Attributes:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        distance: ``(n,)`` float64; 0 where the clean answer is wrong already, infinite where no
            change was found.
        x_adv: The changed inputs ``(n, *shape)``; clean where the distance is 0 or infinite.
        found_by: Name of the attack that found each; ``clean`` where the distance is 0, empty where
            it is infinite.
        forward: Forward passes per sample ``(n,)``, the judge's included.
        backward: Backward passes per sample ``(n,)``.
    """

    norm: str
    distance: Tensor
    x_adv: Tensor
    found_by: tuple[str, ...]
    forward: Tensor
    backward: Tensor

    @property
    def median(self) -> float:
        """The distance that half of the samples do not exceed; infinite if more survive."""
        ordered = self.distance.sort().values
        return float(ordered[(len(ordered) - 1) // 2])

    @property
    def passes(self) -> float:
        """Forward plus backward passes per sample, on average."""
        return float((self.forward + self.backward).double().mean())

    def robust_accuracy(self, eps: float) -> Rate:
        """Samples that no change of size ``eps`` or less is known to fool, with the interval."""
        return Rate.of(int((self.distance > eps).sum()), len(self.distance))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole curve as a staircase: radii, and the accuracy from each on.

        Between two radii the accuracy is that of the smaller one.
        """
        finite = self.distance[self.distance.isfinite()].cpu().numpy()
        eps = np.unique(np.concatenate([[0.0], finite]))
        standing = np.searchsorted(np.sort(finite), eps, side="right")
        return eps, 1.0 - standing / max(1, len(self.distance))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the changed inputs."""
        return {
            "norm": self.norm,
            "n": len(self.distance),
            "median": self.median if math.isfinite(self.median) else None,
            "passes": self.passes,
            "distances": [d if math.isfinite(d) else None for d in self.distance.tolist()],
            "found_by": list(self.found_by),
        }

    def __str__(self) -> str:
        found = self.distance.isfinite()
        clean = self.robust_accuracy(0.0)
        none = int((~found).sum())
        lines = [
            f"clean accuracy {clean}",
            f"half of the samples fall to a {self.norm} change of {self.median:.4g} or less"
            if math.isfinite(self.median)
            else "for more than half of the samples no change was found",
            f"{none} of {len(found)} samples withstood everything; {self.passes:.0f} passes each",
        ]
        return "\n".join(lines)


def minimal_distances(
    model: Model | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    attacks: Sequence[str | Attack] | None = None,
    budget: int = 1000,
    targets: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> MinimalDistances:
    """Find the smallest change of every input that fools the model.

    Args:
        model: A module or callable with inputs in [0, 1] and logits ``(n, k)``, or a
            :class:`~holdfast.Model`.
        x: Clean inputs ``(n, *shape)`` inside the model's domain.
        y: Labels ``(n,)``.
        norm: ``linf``, ``l2``, ``l1`` or ``l0`` (number of changed coordinates).
        attacks: Minimal attacks, by name or with their options; each gets an equal share of the
            passes. None: :func:`portfolio`.
        budget: Forward plus backward passes per sample, everything included.
        targets: Class to reach per sample ``(n,)``; None for any wrong answer.
        seed: Of all random numbers. Same seed, same bytes.
        batch_size: Samples in flight; results do not depend on it.

    Raises:
        InputError: where model, data and options do not fit together.
    """
    model, norm = Model.wrap(model), ALIASES.get(str(norm).lower(), str(norm).lower())
    x, y = as_inputs(x), as_labels(y)
    targets = None if targets is None else as_labels(targets, "targets")
    _check_options(norm, attacks, budget)
    _check_access(model)
    _check_data(x, y, targets)
    data = ArrayData(x.detach(), y)
    keys = scan(ArrayData(x.detach().cpu(), y.cpu()), model.domain).keys.to(model.device)
    clean = inside(x.detach().float().to(model.device), model.domain)
    labels = y.long().to(model.device)
    goal = torch.full_like(labels, -1) if targets is None else targets.long().to(model.device)
    with model.session():
        preflight(model, *data.fetch(range(min(len(x), 16))), y)
        _check_access(model)  # again: a first look may have found no gradients
        size = batch_size or model.batch_size or model.call_rows(data.shape)
        search = Search(model, clean, labels, goal, norm, Rng(keys).fold(seed))
        n_wrong = search.logits.shape[1] - 1 if targets is None else 1
        turns = _turns(norm, attacks, budget, n_wrong)
        for number, turn in enumerate(turns):
            begin = {
                "x": search.attack,
                "afar": search.approach,
                "spare": search.attack_spare,
                "nearest": search.refine,
                "afar, led": search.approach_led,
                "afar, sure": search.approach_sure,
            }
            begin[turn.begins](turn.attack, number, turn.passes, size)
            if turn.n_looked:
                search.look(turn.n_looked, size)
        if norm == "l0":
            _counted.thin(search, _rounds(budget))
        else:
            polish(search, BISECTIONS)
    names = [turn.attack.card.name for turn in turns]
    return MinimalDistances(
        norm=norm,
        distance=search.distance.cpu(),
        x_adv=search.x_adv.to(device=x.device, dtype=x.dtype),
        found_by=tuple(_name(number, names) for number in search.found_by.tolist()),
        forward=search.forward.cpu(),
        backward=search.backward.cpu(),
    )


class Turn(NamedTuple):
    """An attack, its passes per sample, and where it begins.

    Attributes:
        begins: ``x``, ``nearest`` (at the nearest input known), ``afar`` (at a random input), or
            ``spare``: at x, for another class, in the place of ``afar``, for samples that are led;
            ``afar, led``, ``afar, sure``: as ``afar``, for samples that it leaves out.
        n_looked: Classes gone for, where gradients at x are asked afterwards whether they led.
    """

    attack: Attack
    passes: int
    begins: str = "x"
    n_looked: int = 0


def portfolio(norm: str, budget: int, n_wrong: int = 9) -> list[Turn]:
    """The attacks used by default, each with its passes per sample.

    Some of the passes look around: one run towards each of the likeliest wrong classes, as many as
    arrive within them, for the boundaries of several classes are often about equally near; in linf
    and l1 the search tells by gradients which of some goes first. In l2 and l1 some begin at
    random inputs, however far: a nearer boundary may lie where gradients at x
    do not lead; in l2 they walk along the boundary, from as many inputs as there are passes for; in
    l1 samples whose gradients do lead go for a second class instead, in as many passes. In l2 such
    samples go, with half of these passes, for a class that nobody went for, where gradients say
    that it is nearer than what was found; with more passes several classes are gone for anyhow.
    The others go on from the nearest input found. In l1 a primal-dual run, which goes far from x
    too, has most of the passes where there are enough for it. In l0 a walk along the boundary and
    sigma-zero begin at random inputs, and another walk goes on from the nearest one.

    Args:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        budget: Passes per sample.
        n_wrong: Wrong classes that there are.
    """
    make = registry.attack
    long = int(FOLLOWS * budget) if norm == "l1" else 0
    long = long if long >= LONG else 0
    first, back = (int(share * (budget - long)) for share in SHARES[norm])
    rest = budget - long - first - back
    if norm == "l0":
        afar = make("sigma_zero", steps=_steps(back), step_size=STEP_AFAR)
        return [
            Turn(_walk(first, region=REGION), first, "afar"),
            Turn(afar, back, "afar"),
            Turn(_walk(rest, region=REGION), rest, "nearest"),
        ]
    n_targets = max(1, min(MOST_TARGETS, n_wrong, first // ARRIVES[norm]))
    look = {"steps": _steps(first // n_targets), "n_targets": n_targets}
    around = make("shrinking_ball", **look)
    if norm != "linf":
        around = make("fab", is_thrifty=True, **look)
    turns = [Turn(around, first)]
    if norm == "l2" and WALKS // 2 <= back < 2 * WALKS and n_wrong > n_targets:
        afar, sure = back - CHECKING, back - CHECKING - ASKING
        spare = sure // 2
        made = make("fab", is_thrifty=True, steps=_steps(spare))
        turns = [
            Turn(around, first, n_looked=n_targets),
            Turn(_walk(afar), afar, "afar"),
            Turn(_walk(sure), sure, "afar, sure"),
            Turn(made, spare, "spare"),
            Turn(_walk(spare), spare, "afar, led"),
        ]
    elif norm == "l2":
        n_starts = max(1, back // WALKS)
        passes = [back // n_starts] * (n_starts - 1)
        turns += [Turn(_walk(n), n, "afar") for n in [*passes, back - sum(passes)]]
    elif back:
        turns.append(Turn(make("shrinking_ball", steps=_steps(back), **PACE[norm]), back, "afar"))
        if n_targets == 1 and n_wrong > 1:
            spare = make("fab", is_thrifty=True, steps=_steps(back))
            turns.append(Turn(spare, back, "spare"))
    if long:
        turns.append(Turn(make("primal_dual", steps=_steps(long)), long))
    onward = make("shrinking_ball", steps=_steps(rest - LOOKING), **PACE[norm])
    return [*turns, Turn(onward, rest, "nearest")]


def _walk(passes: int, **options: float) -> Attack:
    """A walk along the boundary that has so many passes, its bisections among them."""
    return registry.attack("boundary_walk", steps=_steps(passes - WALK_BISECTIONS), **options)


def _steps(passes: int) -> int:
    """Gradient steps, of two passes each, that leave some for the judge."""
    return max(1, (passes - JUDGING) // 2)


def _turns(
    norm: str, attacks: Sequence[str | Attack] | None, budget: int, n_wrong: int
) -> list[Turn]:
    end = _counted.COST * _rounds(budget) if norm == "l0" else BISECTIONS + JUDGING
    left = budget - end
    if attacks is None:
        return portfolio(norm, left, n_wrong)
    chosen = [registry.attack(a) if isinstance(a, str) else a for a in attacks]
    return [Turn(attack, left // len(chosen)) for attack in chosen]


def _rounds(budget: int) -> int:
    return min(ROUNDS, budget // PER_ROUND)


def _check_options(norm: str, attacks: Sequence[str | Attack] | None, budget: int) -> None:
    if norm not in SHAPES:
        raise PlanError(f"Unknown norm {norm!r}. Use one of: {', '.join(SHAPES)}.")
    if not isinstance(budget, Integral) or budget < SMALLEST_BUDGET:
        raise PlanError(
            f"The budget is {budget!r} passes per sample; give at least {SMALLEST_BUDGET}, "
            "better 1000."
        )
    if attacks is not None and not attacks:
        raise PlanError("No attack was given. Leave attacks out for the default ones.")
    for attack in attacks or ():
        card = (registry.attack(attack) if isinstance(attack, str) else attack).card
        if card.is_minimal and norm in card.norms:
            continue
        fitting = [
            name
            for name, kind in registry.attacks().items()
            if kind.card.is_minimal and norm in kind.card.norms
        ]
        raise PlanError(
            f"The attack {card.name!r} does not look for the smallest {norm} change. "
            f"Those that do: {', '.join(fitting)}."
        )


def _check_access(model: Model) -> None:
    if not model.access.allows(Access.GRADIENTS):
        raise PlanError(
            f"The smallest change is searched with gradients; the model gives "
            f"{model.access.value} only. Audit it at chosen radii instead: holdfast.audit."
        )


def _check_data(x: Tensor, y: Tensor, targets: Tensor | None) -> None:
    if len(x) != len(y) or (targets is not None and targets.shape != y.shape):
        raise DataError(
            f"Inputs {tuple(x.shape)}, labels {tuple(y.shape)} and targets "
            f"{None if targets is None else tuple(targets.shape)} do not fit."
        )


def _name(number: int, names: list[str]) -> str:
    if number == CLEAN:
        return "clean"
    return names[number] if number >= 0 else ""
