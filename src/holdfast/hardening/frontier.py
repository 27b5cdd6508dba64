"""What accuracy robustness costs: several hardenings between the two, and which of them are best.

Every point is a whole hardening with other values of what is varied. Optuna keeps the points and
says which values come next: all of a grid where lists are given; in a range even steps at first,
then the multi-objective tree of Parzen estimators (Ozaki et al., 2020). It sees the accuracies on
the validation samples alone. The points that no other beats in everything are then audited, on
test data where there is any.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from holdfast.engine.run import run
from holdfast.errors import DataError, ModelCrash, PlanError, PrerequisiteError
from holdfast.events import Event
from holdfast.hardening import checkpoint
from holdfast.hardening.asking import Ask, make_fabric, prepare
from holdfast.hardening.auditing import Rows, describe_rows
from holdfast.hardening.auto import precision
from holdfast.hardening.card import Side
from holdfast.hardening.dials import COSTS, Dial, as_dial, check, turned
from holdfast.hardening.harden import HardenResult, build_ask, listen, run_hardening
from holdfast.hardening.price import side
from holdfast.plan import DataSpec, ModelSpec, Plan

if TYPE_CHECKING:
    from holdfast.data import Data
    from holdfast.model import Model

NAME = "frontier.json"
_STUDY = "points.log"
_GIVEN = {"recipe": ("pgd_training", "trades(beta=1)", "trades(beta=3)", "trades(beta=6)")}
_POINTS = 6
_AUDITED = 1000


class Point(BaseModel):
    """One hardening among several."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int
    values: dict[str, Any]
    """What was varied."""
    recipe: str = ""
    clean: float = 0.0
    """Validation accuracy without attack of the weights that were kept."""
    robust: float = 0.0
    """Validation accuracy under the validation's attack."""
    seconds: float = 0.0
    """Of training."""
    passes: float = 0.0
    """Forward and backward passes of single samples in training."""
    directory: str = ""
    is_efficient: bool = False
    """No other point is better in one of clean, robust (and cost, where varied), worse in none."""
    audit: Side | None = None
    failure: str = ""
    """Why there is no result; empty where there is one."""


class Frontier(BaseModel):
    """Points between accuracy, robustness and cost; plain data."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    model: str
    threats: tuple[str, ...]
    varied: tuple[str, ...]
    audited_on: str
    before: Side | None
    points: tuple[Point, ...]
    command: str

    @property
    def efficient(self) -> tuple[Point, ...]:
        """The points that no other beats, the most accurate first."""
        best = [p for p in self.points if p.is_efficient]
        return tuple(sorted(best, key=lambda p: (-p.clean, p.robust)))

    def save(self, directory: Path) -> None:
        """Write ``frontier.json`` and ``frontier.html``."""
        from holdfast.hardening.frontier_page import render

        checkpoint.write_text(directory / NAME, self.model_dump_json(indent=1))
        checkpoint.write_text(directory / "frontier.html", render(self))

    def __str__(self) -> str:
        from holdfast.hardening.frontier_page import text

        return text(self)


@dataclass(frozen=True, slots=True)
class PointStarted(Event):
    """A hardening of the frontier begins, or goes on."""

    kind: ClassVar[str] = "point"
    number: int
    n_points: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PointDone(Event):
    """A hardening of the frontier has ended; ``failure`` says why it has no result."""

    kind: ClassVar[str] = "point_done"
    number: int
    clean_accuracy: float
    robust_accuracy: float
    seconds: float
    failure: str


# ---------------------------------------------------------------------- the call


def frontier(
    model: Any,
    train: Any,
    validation: Any = None,
    threat: Any = (),
    *,
    vary: Mapping[str, Any] | None = None,
    n_points: int | None = None,
    out: str | Path = "holdfast-frontier",
    on_event: Any = None,
    **options: Any,
) -> Frontier:
    """Several hardenings between accuracy, robustness and cost, the best of them audited.

    Args:
        model: As in :func:`holdfast.harden`, like ``train``, ``validation``, ``threat``.
        train: To train on.
        validation: To choose by; None: a tenth of ``train``.
        threat: What the model shall withstand.
        vary: What to vary: ``{"beta": (1, 3, 6)}``, ``{"beta": "0.5..12", "epochs": (2, 8)}``,
            ``{"recipe": ("pgd_training", "mart")}``; None: four recipes.
        n_points: Hardenings in all; None: all of a grid, six in a range.
        out: Directory; a second call with the same arguments goes on with it.
        on_event: Called with every event.
        options: As in :func:`holdfast.harden`. A ``budget`` is for all points together.

    Returns:
        The points; ``frontier.html`` in ``out`` shows them.

    Raises:
        PrerequisiteError: without Optuna.
        InputError: where something does not fit together; nothing was written.
    """
    ask = build_ask(model, train, validation, threat, **options)
    dials = tuple(as_dial(name, given) for name, given in (vary or _GIVEN).items())
    return listen(run_frontier(ask, dials, n_points, Path(out)), on_event)


def run_frontier(
    ask: Ask, dials: Sequence[Dial], n_points: int | None, directory: Path
) -> Generator[Event, None, Frontier]:
    """Make all points or go on with them; events on the way, the frontier at the end."""
    optuna = _optuna()
    dials = dials or tuple(as_dial(name, given) for name, given in _GIVEN.items())
    check(ask, dials)
    total = _n_points(dials, n_points)
    if ask.seconds is not None:
        ask = replace(ask, seconds=ask.seconds / total)
    directory.mkdir(parents=True, exist_ok=True)
    made: list[tuple[Point, HardenResult | None]] = []
    with _quiet(optuna):
        study = _study(optuna, directory, total, ask.seed)
        for trial in _trials(study, dials, total):
            values = {dial.name: _suggested(trial, dial) for dial in dials}
            yield PointStarted(trial.number, total, values)
            point, result = yield from _point(ask, values, trial.number, directory)
            made.append((point, result))
            _tell(optuna, study, trial, point)
            yield PointDone(point.number, point.clean, point.robust, point.seconds, point.failure)
    return (yield from _judged(ask, dials, made, directory))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise PrerequisiteError(
            'A frontier is searched with Optuna: pip install "holdfast[frontier]"'
        ) from None
    return optuna


def _n_points(dials: Sequence[Dial], asked: int | None) -> int:
    grid = math.prod(len(d.values) for d in dials) if all(d.values for d in dials) else None
    n = asked if asked is not None else (grid or _POINTS)
    if n < 1:
        raise PlanError(f"The number of points is {n}; give at least 1.")
    return n if grid is None else min(n, grid)


# ---------------------------------------------------------------------- the tuner


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna without its log lines; its own setting comes back."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _study(optuna: Any, directory: Path, total: int, seed: int) -> Any:
    """The study in a file; an earlier sitting's points are in it."""
    path = str(directory / _STUDY)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, total // 2))
    return optuna.create_study(
        storage=storage,
        sampler=sampler,
        study_name="frontier",
        directions=("maximize", "maximize"),
        load_if_exists=True,
    )


def _trials(study: Any, dials: Sequence[Dial], total: int) -> Iterator[Any]:
    """Points of an earlier sitting in their order, then new ones."""
    import optuna

    old = len(study.trials)
    for number in range(old):
        yield optuna.trial.Trial(study, study.trials[number]._trial_id)
    if old == 0:
        _first_look(study, dials, total)
    while len(_begun(study)) < total:
        yield study.ask()


def _begun(study: Any) -> list[Any]:
    return [t for t in study.trials if t.state.name != "WAITING"]


def _first_look(study: Any, dials: Sequence[Dial], total: int) -> None:
    """All of a grid; or even steps through a single range before the tuner looks closer."""
    if all(dial.values for dial in dials):
        grid = list(itertools.product(*(dial.values for dial in dials)))
        chosen = [grid[i * len(grid) // total] for i in range(total)]
    elif len(dials) == 1:
        chosen = [(value,) for value in dials[0].spread(max(2, math.ceil(total / 2)))[:total]]
    else:
        chosen = []
    for values in chosen:
        study.enqueue_trial({d.name: v for d, v in zip(dials, values, strict=True)})


def _suggested(trial: Any, dial: Dial) -> Any:
    if dial.values:
        return trial.suggest_categorical(dial.name, list(dial.values))
    if dial.is_integer:
        return trial.suggest_int(dial.name, dial.low, dial.high, log=dial.is_log)
    return trial.suggest_float(dial.name, dial.low, dial.high, log=dial.is_log)


def _tell(optuna: Any, study: Any, trial: Any, point: Point) -> None:
    if study.trials[trial.number].state.is_finished():
        return
    if point.failure:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, (point.robust, point.clean))


# ---------------------------------------------------------------------- one point


def _point(
    ask: Ask, values: dict[str, Any], number: int, directory: Path
) -> Generator[Event, None, tuple[Point, HardenResult | None]]:
    """One hardening; a failure of the model is a point without a result, the others go on."""
    place = f"point-{number:03d}"
    own = replace(turned(ask, values), audit=False)
    try:
        result = yield from run_hardening(own, directory / place)
    except (ModelCrash, DataError) as error:
        point = Point(number=number, values=values, directory=place, failure=str(error))
        return point, None
    card = result.card
    kept = max(card.rounds, key=lambda r: (r.verified or 0.0, r.robust, r.clean), default=None)
    return (
        Point(
            number=number,
            values=values,
            recipe=card.recipe_at_end,
            clean=0.0 if kept is None else kept.clean,
            robust=0.0 if kept is None else kept.robust,
            seconds=card.training_seconds,
            passes=card.passes,
            directory=place,
        ),
        result,
    )


def efficient(points: Sequence[Point], has_cost: bool) -> list[bool]:
    """Which points no other beats: as good in everything that counts, and better in something."""
    worth = [(p.clean, p.robust, -p.passes if has_cost else 0.0) for p in points]
    return [
        not own.failure
        and not any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
            for other, rival in zip(worth, points, strict=True)
            if not rival.failure
        )
        for own, mine in zip(points, worth, strict=True)
    ]


# ---------------------------------------------------------------------- the judgement


def _judged(
    ask: Ask,
    dials: Sequence[Dial],
    made: Sequence[tuple[Point, HardenResult | None]],
    directory: Path,
) -> Generator[Event, None, Frontier]:
    """Mark the best points, audit them and the model as it came, save."""
    marks = efficient([p for p, _ in made], any(d.name in COSTS for d in dials))
    data, words = _audited_rows(ask)
    before, points = None, []
    if ask.audit:
        before = yield from _audit(ask, ask.model, data, directory / "before")
    for (point, result), is_best in zip(made, marks, strict=True):
        found = None
        if is_best and ask.audit and result is not None:
            place = directory / point.directory / "audit"
            found = yield from _audit(ask, result.model, data, place)
        points.append(point.model_copy(update={"is_efficient": is_best, "audit": found}))
    whole = Frontier(
        model=ask.model.description,
        threats=tuple(t.describe() for t in ask.threats),
        varied=tuple(d.name for d in dials),
        audited_on=words if ask.audit else "",
        before=before,
        points=tuple(points),
        command=ask.command,
    )
    whole.save(directory)
    return whole


def _audited_rows(ask: Ask) -> tuple[Data, str]:
    """The test samples, or the validation samples by which all points were chosen."""
    from holdfast.data import FirstN

    fabric = make_fabric(ask.model.device, precision(ask))
    ready = prepare(replace(ask, audit=False), fabric.device)
    n = ask.n_audit or _AUDITED
    if ask.test is not None:
        data: Data = FirstN(ask.test, n)
    else:
        store = ready.samples.validation_store.data
        rows = tuple(ready.samples.split.validation[:n].tolist())
        data = Rows(store, rows, f"{len(rows)} validation samples of {store.description}")
    return data, describe_rows(ask, ready, len(data))


def _audit(ask: Ask, model: Model, data: Data, directory: Path) -> Generator[Event, None, Side]:
    from holdfast.reports.report import Report

    plan = Plan(
        model=ModelSpec(source=ask.source, weights=ask.weights),
        data=DataSpec(source=ask.names.get("test", "")),
        threats=tuple(t.describe() for t in ask.threats),
        curve_steps=0,
        seed=ask.seed,
    )
    yield from run(plan, model, data, directory, ask.threats)
    return side(Report.load(directory))
