"""From a finished hardening to its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.engine.identity import environment
from holdfast.hardening.asking import Ask, Ready, settings_in_words
from holdfast.hardening.auditing import describe_rows
from holdfast.hardening.card import NAME, HardenCard, Round
from holdfast.hardening.logs import read
from holdfast.hardening.loop import Loop
from holdfast.hardening.meter import Meter
from holdfast.hardening.price import Answers, side, worse
from holdfast.hardening.settings import HardenPlan
from holdfast.hardening.state import State
from holdfast.record import Finding

if TYPE_CHECKING:
    from holdfast.reports.report import Report


@dataclass(frozen=True)
class Story:
    """What the card tells."""

    ask: Ask
    ready: Ready
    plan: HardenPlan
    loop: Loop
    meter: Meter
    warned: tuple[Finding, ...]
    path: Path | None
    corrupted: tuple[Answers, Answers]


def make_card(
    story: Story, before: Report | None, after: Report | None, directory: Path
) -> HardenCard:
    """The card of a hardening that came to its end."""
    ask, ready, loop = story.ask, story.ready, story.loop
    state, spent = loop.trainer.state, story.meter.read()
    lost = []
    if before is not None and after is not None:
        lost = worse(before, after, ask.groups, story.corrupted)
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
        before=None if before is None else side(before, story.corrupted[0]),
        after=None if after is None else side(after, story.corrupted[1]),
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
    return tuple(
        Round(
            epoch=line["epoch"],
            seconds=line["seconds"],
            loss=line["loss"],
            clean=line["clean_accuracy"],
            robust=line["robust_accuracy"],
            verified=line.get("verified_accuracy"),
        )
        for line in read(directory)
        if line["what"] == "validated"
    )


def _chosen_round(state: State) -> str:
    if state.best is None:
        return ""
    best = state.best
    which = "averaged" if best.is_average else "live"
    if best.verified is not None:
        return (
            f"The {which} weights with the best proven validation accuracy were taken: "
            f"{best.verified:.1%} of {best.n} by the bounds of training ({best.robust:.1%} under "
            f"attack, {best.clean:.1%} without)."
        )
    return (
        f"The {which} weights with the best validation accuracy under attack were taken: "
        f"{best.robust:.1%} of {best.n} ({best.clean:.1%} without attack)."
    )


def _warnings(story: Story, state: State) -> list[Finding]:
    """What a reader must know that no event said."""
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
