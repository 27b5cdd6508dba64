"""The training loop: updates, validations, alarms, checkpoints, in this order, until the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from holdfast.events import Event, Found
from holdfast.hardening import alarms, checkpoint
from holdfast.hardening.alarms import Alarm, is_single_step
from holdfast.hardening.clock import Clock
from holdfast.hardening.events import RolledBack, Training, Validated
from holdfast.hardening.logs import Log
from holdfast.hardening.network import is_finite
from holdfast.hardening.samples import majority_share
from holdfast.hardening.trainer import Setup, Trainer, checkpointed_random
from holdfast.hardening.validation import Score, Watch, trains_bounds, validate, watch

_EVENT_SECONDS = 0.2
_CHECKPOINT_SECONDS = 10.0
_LOOK = 10  # updates between two reads of the loss: each read waits for the device
_MOST_ROLLBACKS = 8
_SLOWER = 0.3
_LONGER = 1.5


class Loop:
    """A training from its beginning, or from its last checkpoint, to its end.

    Args:
        setup: What is trained and how.
        directory: Where checkpoints and log go; None: nowhere, and nothing can be resumed.
    """

    def __init__(self, setup: Setup, directory: Path | None) -> None:
        self.trainer = Trainer(setup)
        self.setup, self.settings = setup, setup.settings
        self.directory = directory
        self.log = Log(directory if setup.fabric.is_global_zero else None)
        self.chance = majority_share(setup.samples.store.y)
        self.clock = Clock(self.settings, 0.0, setup.fabric)
        self._good: dict[str, Any] = {}
        self._watched: Watch | None = None
        self._best: dict[str, torch.Tensor] = {}
        self._loss, self._n_losses = torch.zeros((), device=setup.model.device), 0
        self._spoke = self._saved = time.monotonic()

    # ------------------------------------------------------------------ the whole

    def run(self) -> Iterator[Event]:
        """Train; at the end the best weights seen are in place."""
        resumed = self._resume()
        if not resumed:
            yield from self._begin()
        if not self.trainer.state.is_done:
            yield from self._train()
        self._end()

    def _train(self) -> Iterator[Event]:
        trainer = self.trainer
        for rows in trainer.batches():
            progress = self.clock.progress(trainer.state.index)
            if progress >= 1 or trainer.state.n_rollbacks >= _MOST_ROLLBACKS:
                break
            for loss in trainer.updates(rows, progress):
                self._loss += loss.detach()
                self._n_losses += 1
            yield from self._look(progress)
        yield from self._round(1.0, is_last=True)

    def _look(self, progress: float) -> Iterator[Event]:
        """What happens between two updates."""
        index, settings = self.trainer.state.index, self.settings
        if index % settings.updates_per_round == 0:
            yield from self._round(progress)
        elif index % settings.updates_per_check == 0:
            yield from self._check()
        elif index % _LOOK == 0 and not math.isfinite(float(self._loss)):
            yield from self._act(alarms.not_finite(float(self._loss)))
        now = time.monotonic()
        if now - self._spoke > _EVENT_SECONDS:
            self._spoke = now
            yield self._training(progress)
        if now - self._saved > _CHECKPOINT_SECONDS:
            self._save()

    # ------------------------------------------------------------------ rounds

    def _begin(self) -> Iterator[Event]:
        """The weights as they came are the first to beat."""
        trainer = self.trainer
        self._keep_good(None)
        score = self._score()
        trainer.state.best = score
        self._best = _copied(trainer.network.state_dict())
        self._write(checkpoint.BEST, {"network": self._best, "score": score.value})
        self._save()
        yield self._validated(0.0, score, False)

    def _round(self, progress: float, is_last: bool = False) -> Iterator[Event]:
        """Alarms first, then the validation; good weights become the ones to go back to."""
        if is_last and self.trainer.state.validated == self.trainer.state.index:
            yield from self._finish()
            return
        alarm = self._alarm()
        if alarm is not None:
            yield from self._act(alarm)
            if not is_last:
                return
        scored = self._candidates(is_last)
        score = max(scored, key=lambda found: found.value)
        state = self.trainer.state
        was_above = any(s.clean > self.chance + 0.1 for s in state.history)
        state.history.append(score)
        is_best = state.best is None or score.value > state.best.value
        if is_best:
            self._keep_best(score)
        yield self._validated(progress, score, is_best)
        self._reset_loss()
        if (bad := alarms.chance_level(score, self.chance, was_above, progress)) is not None:
            yield from self._act(bad)
            return
        if (told := alarms.robust_overfitting(state.history)) is not None:
            yield from self._tell(told)
        self._keep_good(self._watched)
        state.is_done = is_last
        state.validated = state.index
        self._save()

    def _finish(self) -> Iterator[Event]:
        """The end, where these weights were validated a moment ago: only the live ones are left."""
        score = self._score() if self.trainer.average.is_on else None
        best = self.trainer.state.best
        if score is not None and best is not None and score.value > best.value:
            self.trainer.state.history.append(score)
            self._keep_best(score)
            yield self._validated(1.0, score, True)
        self.trainer.state.is_done = True
        self._save()
        yield self._training(1.0)

    def _candidates(self, is_last: bool) -> list[Score]:
        """Scores of the averaged weights, and at the end of the live ones too."""
        if not self.trainer.average.is_on:
            return [self._score()]
        with self.trainer.averaged():
            scores = [self._score(is_average=True)]
        return [*scores, self._score()] if is_last else scores

    def _score(self, is_average: bool = False) -> Score:
        with checkpointed_random(self.setup.model.device):
            found = validate(
                self.trainer.step,
                self.setup.samples,
                self.settings.n_validation,
                self.settings.validation_steps,
                is_certified=trains_bounds(self.setup.recipe),
            )
        return self._agreed(replace(found, is_average=is_average))

    def _agreed(self, value: Any) -> Any:
        """The first process's value on all: decisions hang on it."""
        fabric = self.setup.fabric
        return fabric.broadcast(value) if fabric.world_size > 1 else value

    def _keep_best(self, score: Score) -> None:
        self.trainer.state.best = score
        if score.is_average:
            with self.trainer.averaged():
                self._best = _copied(self.trainer.network.state_dict())
        else:
            self._best = _copied(self.trainer.network.state_dict())
        self._write(checkpoint.BEST, {"network": self._best, "score": score.value})

    def _keep_good(self, seen: Watch | None) -> None:
        self.trainer.state.good = seen
        self._good = self.trainer.snapshot()
        self._write(checkpoint.GOOD, self._good)

    # ------------------------------------------------------------------ alarms

    def _check(self) -> Iterator[Event]:
        """Between validations: weights that pass are good to go back to."""
        alarm = self._alarm(is_glance=True)
        if alarm is not None:
            yield from self._act(alarm)
        elif self._watched is not None and is_single_step(self.trainer.recipe):
            self._keep_good(self._watched)

    def _alarm(self, *, is_glance: bool = False) -> Alarm | None:
        """The first alarm that a look at a held-out batch gives."""
        loss = float(self._loss)
        if not self._agreed(math.isfinite(loss) and is_finite(self.trainer.network)):
            return alarms.not_finite(loss)
        with checkpointed_random(self.setup.model.device):
            found = watch(self.trainer.step, self.setup.samples, is_glance=is_glance)
        now = self._watched = self._agreed(found)
        self.log.write("watch", self.trainer.state.index, now)
        if now.clean < self.chance + 0.1:
            return None  # nothing is learned yet: the other alarms mean nothing
        return (
            alarms.collapse(now, self.trainer.state.good, is_single_step(self.trainer.recipe))
            or alarms.label_leaking(now, self.chance)
            or alarms.masked_gradients(now)
        )

    def _act(self, alarm: Alarm) -> Iterator[Event]:
        """Roll back and go on more safely, or only tell."""
        trainer, state = self.trainer, self.trainer.state
        is_switched = alarm.action == "switch" and trainer.take_safer()
        if (
            alarm.action == "switch"
            and not is_switched
            and alarm.code != "catastrophic_overfitting"
        ):
            yield from self._tell(alarm)
            return
        progress = self.clock.progress(state.index)
        trainer.restore(self._good)
        if is_switched:
            trainer.step.state.clear()
        else:
            state.rate_scale *= _SLOWER
        if alarm.code == "chance_level":
            state.origin, state.ramp_share = (
                progress,
                min(0.9, max(0.3, state.ramp_share * _LONGER)),
            )
        state.restart = progress
        state.n_rollbacks += 1
        self._reset_loss()
        self._save()
        recipe = trainer.recipe.describe()
        event = RolledBack(alarm.code, alarm.text, trainer.epochs, recipe, self.clock.spent)
        self.log.write("rolled_back", state.index, event)
        yield event

    def _tell(self, alarm: Alarm) -> Iterator[Event]:
        """Say it once."""
        if alarm.code in self.trainer.state.told:
            return
        self.trainer.state.told.append(alarm.code)
        self.log.write("alarm", self.trainer.state.index, alarm)
        yield Found(alarm.code, "warning", alarm.text)

    # ------------------------------------------------------------------ files

    def _resume(self) -> bool:
        if self.directory is None:
            return False
        last = checkpoint.load(self.directory / checkpoint.LAST)
        good = checkpoint.load(self.directory / checkpoint.GOOD)
        best = checkpoint.load(self.directory / checkpoint.BEST)
        if last is None or good is None or best is None:
            return False
        self.trainer.resume(last)
        self._good, self._best = good, best["network"]
        self._loss += last["loss"][0]
        self._n_losses = int(last["loss"][1])
        self.clock = Clock(self.settings, self.trainer.state.seconds, self.setup.fabric)
        self.log.cut(self.trainer.state.index)
        return True

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.trainer.state.seconds = self.clock.spent
        content = self.trainer.checkpoint() | {"loss": [float(self._loss), self._n_losses]}
        self._write(checkpoint.LAST, content)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.directory is not None and self.setup.fabric.is_global_zero:
            checkpoint.save(self.directory / name, content)

    def _end(self) -> None:
        self.trainer.network.load_state_dict(self._best)
        self.trainer.network.eval()
        self.trainer.optimiser.zero_grad()
        self.log.close()

    # ------------------------------------------------------------------ events

    def _reset_loss(self) -> None:
        self._loss.zero_()
        self._n_losses = 0

    def _mean_loss(self) -> float:
        return float(self._loss) / max(1, self._n_losses)

    def _training(self, progress: float) -> Training:
        trainer, state = self.trainer, self.trainer.state
        last = state.history[-1] if state.history else state.best
        return Training(
            trainer.epochs,
            progress,
            self._mean_loss(),
            trainer.learning_rate,
            trainer.step.ramp,
            None if last is None else last.clean,
            None if last is None else last.robust,
            self.clock.spent,
            self.clock.left(state.index),
        )

    def _validated(self, progress: float, score: Score, is_best: bool) -> Validated:
        event = Validated(
            self.trainer.epochs,
            progress,
            self._mean_loss(),
            score.clean,
            score.robust,
            score.n,
            is_best,
            self.clock.spent,
            score.verified,
        )
        self.log.write("validated", self.trainer.state.index, event)
        return event


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().clone() for name, t in state.items()}
