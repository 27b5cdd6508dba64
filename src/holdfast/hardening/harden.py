"""``holdfast.harden``: the most robust model that a budget buys, with its price."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from holdfast.data import as_data
from holdfast.defenses.base import Recipe
from holdfast.engine.identity import environment
from holdfast.errors import JournalError, PlanError
from holdfast.events import Event, Found
from holdfast.hardening import auto, checkpoint
from holdfast.hardening.asking import Ask, Ready, make_fabric, prepare, settings_in_words
from holdfast.hardening.auditing import Audits, describe_rows
from holdfast.hardening.card import NAME, HardenCard, Round
from holdfast.hardening.events import Chosen
from holdfast.hardening.loop import Loop
from holdfast.hardening.meter import Meter
from holdfast.hardening.price import side, worse
from holdfast.hardening.recipe_text import parse_recipe
from holdfast.hardening.saving import save_model
from holdfast.hardening.settings import HardenPlan, Settings
from holdfast.hardening.state import State
from holdfast.hardening.trainer import Setup
from holdfast.hardening.validation import validate
from holdfast.model import Model
from holdfast.plan import Budget
from holdfast.record import Finding
from holdfast.threat import Threat, parse_threat

if TYPE_CHECKING:
    from holdfast.reports.report import Report

T = TypeVar("T")
PLAN = "plan.json"
_LEAST_TRAINING_S = 1.0
_QUICK_LOOK = 100
_PLAIN = ("epochs", "from_scratch", "seed", "audit", "n_audit", "groups")  # as Ask has them


@dataclass(frozen=True)
class HardenResult:
    """What a hardening gives.

    Attributes:
        module: The hardened copy of the module, in evaluation mode, on its device.
        model: The same with its domain and normalisation, for audits.
        card: Before and after, price, warnings.
        before: The whole audit of the model as it came; None where none was asked for.
        after: The whole audit of the hardened one.
        directory: Where everything lies.
    """

    module: nn.Module
    model: Model
    card: HardenCard
    before: Report | None
    after: Report | None
    directory: Path


def harden(
    model: Model | nn.Module | str,
    train: Any,
    validation: Any = None,
    threat: Threat | str | Sequence[Threat | str] = (),
    *,
    recipe: Recipe | str = "auto",
    budget: str | Budget | None = None,
    epochs: float | None = None,
    from_scratch: bool = False,
    test: Any = None,
    extra: Any = None,
    audit: bool = True,
    n_audit: int | None = None,
    groups: Sequence[object] | None = None,
    seed: int = 0,
    device: str | None = None,
    out: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    **settings: Any,
) -> HardenResult:
    """Make a model withstand small changes of its inputs, as well as a budget allows.

    Args:
        model: A ``torch.nn.Module`` with inputs in [0, 1] and logits out, or a
            :class:`~holdfast.Model` for other domains and normalisation, or a reference as on the
            command line. It is copied: your object stays as it is.
        train: ``(x, y)``, a ``Dataset``, a ``DataLoader``, or a path or name.
        validation: Samples to choose the best weights by; None: a tenth of ``train``.
        threat: ``"linf:8/255"`` and the like; several for a recipe against several.
        recipe: ``"auto"`` measures and chooses; or ``"trades(beta=6)"``, or a recipe object.
        budget: ``"45min"``: for all of it, audits included.
        epochs: Passes over ``train`` instead of a budget: repeatable bit for bit on a CPU.
        from_scratch: Throw the weights away and start from random ones.
        test: Samples for the audits before and after; None: the validation samples.
        extra: More samples to mix in, e.g. from a generator (``extra_share`` of every batch).
        audit: Whether to audit before and after, under ``standard``.
        n_audit: Samples of the audits; None: as many as the budget allows.
        groups: A value per test sample, to compare accuracies within.
        seed: Of all random numbers.
        device: Where to train; None: where the model is.
        out: Directory for checkpoints, log, card and model; a second call goes on with it.
        on_event: Called with every event, for progress.
        settings: Any of :class:`holdfast.hardening.settings.Settings`, e.g. ``batch_size=256``.

    Raises:
        InputError: where something does not fit together; nothing was changed.
        JournalError: where the directory holds another hardening, or the disk is full.
    """
    ask = build_ask(
        model,
        train,
        validation,
        threat,
        recipe=recipe,
        budget=budget,
        epochs=epochs,
        from_scratch=from_scratch,
        test=test,
        extra=extra,
        audit=audit,
        n_audit=n_audit,
        groups=groups,
        seed=seed,
        device=device,
        **settings,
    )
    directory = Path(tempfile.mkdtemp(prefix="holdfast-") if out is None else out)
    result = listen(run_hardening(ask, directory), on_event)
    if out is None:
        weakref.finalize(result.module, shutil.rmtree, directory, ignore_errors=True)
    return result


def build_ask(
    model: Model | nn.Module | str,
    train: Any,
    validation: Any = None,
    threat: Threat | str | Sequence[Threat | str] = (),
    *,
    recipe: Recipe | str = "auto",
    budget: str | Budget | None = None,
    device: str | None = None,
    test: Any = None,
    extra: Any = None,
    **options: Any,
) -> Ask:
    """What :func:`harden` was called with, as a record; see there.

    Raises:
        InputError: for what cannot be read.
    """
    threats = [threat] if isinstance(threat, (str, Threat)) else list(threat)
    if not threats:
        raise PlanError("Which threat shall it withstand? Give one, e.g. threat='linf:8/255'.")
    limit = Budget.parse(budget) if isinstance(budget, str) else budget
    return Ask(
        model=_model(model, device),
        train=as_data(train),
        threats=tuple(parse_threat(t) if isinstance(t, str) else t for t in threats),
        validation=None if validation is None else as_data(validation),
        test=None if test is None else as_data(test),
        extra=None if extra is None else as_data(extra),
        recipe=_recipe(recipe),
        seconds=None if limit is None else limit.seconds,
        settings={k: v for k, v in options.items() if k not in _PLAIN},
        **{k: v for k, v in options.items() if k in _PLAIN},
        source=model if isinstance(model, str) else "",
        command="holdfast.harden(...) from Python",
    )


def listen(events: Generator[Event, None, T], on_event: Callable[[Event], None] | None) -> T:
    """The result at the end of the events, each shown on the way."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        if on_event is not None:
            on_event(event)


def _model(model: Any, device: str | None) -> Model:
    if isinstance(model, Model):
        return model
    if isinstance(model, (str, Path)):
        from holdfast.loading import load_model

        loaded = load_model(str(model))
        return Model(loaded.f, device=device, description=loaded.description)
    return Model(model, device=device)


def _recipe(given: Recipe | str) -> Recipe | None:
    if isinstance(given, Recipe):
        return given
    return None if given == "auto" else parse_recipe(given)


# ---------------------------------------------------------------------- the whole


def run_hardening(ask: Ask, directory: Path) -> Generator[Event, None, HardenResult]:
    """Do what was asked, or go on with it; events on the way, the result at the end.

    Raises:
        InputError: where something does not fit together; nothing was written.
        JournalError: where the directory holds another hardening, or the disk is full.
    """
    began = time.monotonic()
    fabric = make_fabric(ask.model.device, auto.precision(ask))
    ready = prepare(ask, fabric.device)
    meter = Meter(ask.model.device)
    for finding in ready.findings:
        yield Found(finding.code, finding.level, finding.text)
    old = _old_plan(ask, ready, directory)
    audits = Audits(ask, ready, directory, fabric)
    before = yield from audits.before()
    plan = old or _new_plan(ask, ready, fabric, audits, began)
    if fabric.is_global_zero and old is None:
        checkpoint.write_text(directory / PLAN, plan.model_dump_json(indent=1))
    recipe = ask.recipe or parse_recipe(plan.recipe)
    setup = Setup(ready.model, ready.samples, ask.threats, recipe, plan.settings, fabric)
    loop = Loop(setup, directory)
    yield _chosen(plan, loop, directory)
    warned: list[Finding] = list(ready.findings)
    for event in loop.run():
        if isinstance(event, Found):
            warned.append(Finding(code=event.code, level="warning", text=event.text))
        yield event
    after = yield from audits.after(loop.trainer.state)
    path = None
    if fabric.is_global_zero:
        path = save_model(ready.model.f, ask.source, ask.weights, directory)  # type: ignore[arg-type]
    story = _Story(ask, ready, plan, loop, meter, tuple(warned), path)
    card = _card(story, before, after, directory)
    if fabric.is_global_zero:
        card.save(directory)
    return HardenResult(ready.model.f, ready.model, card, before, after, directory)  # type: ignore[arg-type]


def _asked_plan(ask: Ask, ready: Ready) -> HardenPlan:
    """The part of the plan that is asked for, not chosen."""
    samples = ready.samples
    extra = None if samples.extra is None else samples.extra.hash
    return HardenPlan(
        model={"source": ask.source, "weights": ask.weights, **auto.describe_model(ready.model)},
        data={
            **ask.names,
            "train_hash": samples.store.hash,
            "validation_hash": samples.validation_store.hash,
            "extra_hash": extra,
        },
        threats=tuple(t.describe() for t in ask.threats),
        recipe="" if ask.recipe is None else ask.recipe.describe(),
        from_scratch=ask.from_scratch,
        budget=f"{ask.budget}, seed {ask.seed}, {sorted(ask.settings.items())}",
    )


def _old_plan(ask: Ask, ready: Ready, directory: Path) -> HardenPlan | None:
    """The plan of an earlier sitting of the same hardening."""
    path = directory / PLAN
    if not path.is_file():
        return None
    old = HardenPlan.model_validate_json(path.read_bytes())
    if old.id != _asked_plan(ask, ready).id:
        raise JournalError(
            f"{directory} holds another hardening (of {old.model.get('description')} against "
            f"{', '.join(old.threats)}, {old.budget}). Give another --out, or the same options."
        )
    return old


def _new_plan(ask: Ask, ready: Ready, fabric: Any, audits: Audits, began: float) -> HardenPlan:
    """Measure and choose, on the first process; the others do the same."""
    plan = _asked_plan(ask, ready)
    if fabric.is_global_zero:
        draft = Settings(n_updates=1, seed=ask.seed)
        setup = Setup(
            ready.model,
            ready.samples,
            ask.threats,
            ask.recipe or _any_recipe(),
            draft,
            _alone(fabric),
        )
        start = 0.0 if ask.from_scratch else _start(setup)
        seconds = None
        if ask.seconds is not None:
            reserve = audits.reserve_s
            seconds = max(_LEAST_TRAINING_S, ask.seconds - (time.monotonic() - began) - reserve)
        asked = auto.Asked(
            seconds, ask.epochs, ask.recipe, ask.from_scratch, start, ask.settings, ask.seed
        )
        chosen = auto.choose(asked, setup)
        settings = chosen.settings
        if ask.seconds is not None:
            spent = time.monotonic() - began
            left = max(_LEAST_TRAINING_S, ask.seconds - spent - audits.reserve_s)
            settings = settings.model_copy(update={"seconds": left})
        plan = plan.model_copy(
            update={
                "recipe": chosen.recipe.describe(),
                "settings": settings,
                "reasons": chosen.reasons,
            }
        )
    return fabric.broadcast(plan)


def _any_recipe() -> Recipe:
    from holdfast.defenses.pgd_training import PGDTraining

    return PGDTraining()


def _alone(fabric: Any) -> Any:
    """A Fabric of one process, for measuring on the first of several."""
    if fabric.world_size == 1:
        return fabric
    return _Alone(fabric)


class _Alone:
    """What a trainer needs of Fabric, for one process among several."""

    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, fabric: Any) -> None:
        self.strategy, self.autocast = fabric.strategy, fabric.autocast

    def setup_optimizers(self, optimiser: Any) -> Any:
        return optimiser

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def _start(setup: Setup) -> float:
    """Robust over clean accuracy of the weights as they came, on a few validation samples."""
    from holdfast.hardening.trainer import Trainer

    score = validate(Trainer(setup).step, setup.samples, _QUICK_LOOK, 10)
    return auto.start_ratio(score.clean, score.robust)


def _chosen(plan: HardenPlan, loop: Loop, directory: Path) -> Chosen:
    samples = loop.setup.samples
    done = checkpoint.load(directory / checkpoint.LAST)
    return Chosen(
        plan.recipe,
        plan.settings.model_dump(exclude_none=True),
        plan.reasons,
        str(directory),
        samples.n_train,
        min(len(samples.split.validation), plan.settings.n_validation),
        0 if done is None else int(done["state"]["index"]),
    )


# ---------------------------------------------------------------------- the card


@dataclass(frozen=True)
class _Story:
    """What the card tells."""

    ask: Ask
    ready: Ready
    plan: HardenPlan
    loop: Loop
    meter: Meter
    warned: tuple[Finding, ...]
    path: Path | None


def _card(
    story: _Story, before: Report | None, after: Report | None, directory: Path
) -> HardenCard:
    ask, ready, loop = story.ask, story.ready, story.loop
    state, spent = loop.trainer.state, story.meter.read()
    lost = [] if before is None or after is None else worse(before, after, ask.groups)
    return HardenCard(
        model=ask.model.description,
        model_path="" if story.path is None else str(story.path),
        threats=tuple(t.describe() for t in ask.threats),
        data=ask.train.description,
        audited_on=describe_rows(ask, ready, 0 if after is None else after.n_samples),
        recipe=story.plan.recipe,
        recipe_at_end=loop.trainer.recipe.describe(),
        settings=settings_in_words(story.plan.settings),
        reasons=story.plan.reasons,
        before=None if before is None else side(before),
        after=None if after is None else side(after),
        rounds=_rounds(directory),
        chosen_round=_chosen_round(state),
        seconds=float(spent["seconds"] or 0),
        training_seconds=state.seconds,
        epochs=loop.trainer.epochs,
        updates=state.index,
        passes=state.passes,
        peak_memory_mb=float(spent["peak_memory_mb"] or 0),
        energy_kj=spent["energy_kj"],
        n_parameters=sum(p.numel() for p in loop.trainer.step.weights()),
        worse=tuple(lost),
        warnings=(*story.warned, *_warnings(story, state)),
        command=ask.command,
        environment=environment(ready.model),
    )


def _rounds(directory: Path) -> tuple[Round, ...]:
    from holdfast.hardening.logs import read

    return tuple(
        Round(
            epoch=line["epoch"],
            seconds=line["seconds"],
            loss=line["loss"],
            clean=line["clean_accuracy"],
            robust=line["robust_accuracy"],
        )
        for line in read(directory)
        if line["what"] == "validated"
    )


def _chosen_round(state: State) -> str:
    if state.best is None:
        return ""
    which = "averaged" if state.best.is_average else "live"
    return (
        f"The {which} weights with the best validation accuracy under attack were taken: "
        f"{state.best.robust:.1%} of {state.best.n} ({state.best.clean:.1%} without attack)."
    )


def _warnings(story: _Story, state: State) -> list[Finding]:
    """What a reader must know that no event said."""
    from holdfast.hardening.logs import read

    found = []
    for line in read(story.loop.directory or Path()):
        if line["what"] == "rolled_back":
            text = f"{line['text']} The training went back and on with {line['recipe']}."
            found.append(Finding(code=line["code"], level="warning", text=text))
    gained = bool(state.history) and state.best in state.history
    if not gained:
        found.append(
            Finding(
                code="no_gain",
                level="warning",
                text="No weights were better under attack than those given, so those are what is "
                "returned. Give a larger budget, a smaller radius, or more data.",
            )
        )
    if story.ask.test is None and story.ask.audit:
        found.append(
            Finding(
                code="audited_on_validation",
                level="info",
                text="The audits are on the validation samples, by which the best weights were "
                "chosen: expect slightly less on new samples. Give test data for a clean number.",
            )
        )
    return found


def finished(directory: Path) -> bool:
    """Whether a hardening in this directory has come to its end."""
    return (directory / NAME).is_file()
