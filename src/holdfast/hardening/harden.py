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

from torch import nn

from holdfast.data import as_data
from holdfast.defenses.base import Recipe
from holdfast.events import Event, Found
from holdfast.hardening import auto, checkpoint, planning
from holdfast.hardening.asking import Ask, make_fabric, prepare
from holdfast.hardening.auditing import Audits
from holdfast.hardening.card import HardenCard
from holdfast.hardening.events import Chosen
from holdfast.hardening.loop import Loop
from holdfast.hardening.meter import Meter
from holdfast.hardening.recipe_text import parse_recipe
from holdfast.hardening.saving import check_not_overwritten, save_model
from holdfast.hardening.settings import HardenPlan
from holdfast.hardening.telling import Story, make_card
from holdfast.hardening.trainer import Setup
from holdfast.model import Model
from holdfast.plan import Budget, as_budget
from holdfast.record import Finding
from holdfast.threat import Threat, parse_threats

if TYPE_CHECKING:
    from holdfast.reports.report import Report

T = TypeVar("T")
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
    given = {**locals(), **settings}
    for name in ("settings", "out", "on_event"):
        del given[name]
    ask = build_ask(**given)
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
    return Ask(
        model=_model(model, device),
        train=as_data(train),
        threats=parse_threats(threat),
        validation=None if validation is None else as_data(validation),
        test=None if test is None else as_data(test),
        extra=None if extra is None else as_data(extra),
        recipe=_recipe(recipe),
        seconds=as_budget(budget).seconds,
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
    check_not_overwritten(ask.source, ask.weights, directory)
    fabric = make_fabric(ask.model.device, auto.precision(ask))
    ready = prepare(ask, fabric.device)
    meter = Meter(ask.model.device)
    for finding in ready.findings:
        yield Found(finding.code, finding.level, finding.text)
    old = planning.old_plan(ask, ready, directory)
    audits = Audits(ask, ready, directory, fabric)
    before = yield from audits.before()
    plan = old or planning.new_plan(ask, ready, fabric, audits, began)
    if fabric.is_global_zero and old is None:
        checkpoint.write_text(directory / planning.PLAN, plan.model_dump_json(indent=1))
    recipe = ask.recipe or parse_recipe(plan.recipe)
    setup = Setup(ready.model, ready.samples, ask.threats, recipe, plan.settings, fabric)
    loop = Loop(setup, directory)
    yield _chosen(plan, loop, directory)
    warned: list[Finding] = list(ready.findings)
    for event in loop.run():
        if isinstance(event, Found):
            warned.append(Finding(code=event.code, level="warning", text=event.text))
        yield event
    path = None
    if fabric.is_global_zero:
        path = save_model(ready.model.f, ask.source, ask.weights, directory)  # type: ignore[arg-type]
    after = yield from audits.after(loop.trainer.state)
    story = Story(ask, ready, plan, loop, meter, tuple(warned), path, audits.corrupted())
    card = make_card(story, before, after, directory)
    if fabric.is_global_zero:
        card.save(directory)
    return HardenResult(ready.model.f, ready.model, card, before, after, directory)  # type: ignore[arg-type]


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
