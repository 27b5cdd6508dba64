"""What the loop promises, each promise with a planted defect that breaks it and is seen."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import hardening_tools as small
import pytest
import torch

from holdfast.attacks.pgd import PGD
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.hardening import loop as loop_module
from holdfast.hardening import samples, trainer
from holdfast.hardening.averaging import Average
from holdfast.hardening.state import State
from holdfast.hardening.step import Lent
from holdfast.hardening.validation import Score


@dataclass(frozen=True)
class Spy(Recipe):
    """PGD training that remembers which samples it saw, and the mode attacks saw."""

    seen: list = field(default_factory=list, compare=False)
    modes: set = field(default_factory=set, compare=False)

    card: ClassVar[Card] = replace(PGDTraining.card, name="spy")

    @property
    def passes(self) -> float:
        return 4.0

    def craft(self, step: Step, batch: Batch) -> Batch:
        self.seen.extend(batch.ids.tolist())

        def answers(x):
            self.modes.add(step.network.training)  # type: ignore[attr-defined]
            return batch.cross_entropy(x)

        step.input_gradient(batch.x, answers)
        return replace(batch, x_adv=step.attack(batch, PGD(steps=1)))

    def loss(self, step: Step, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()


def spied(**options):
    spy = Spy()
    loop = small.loop(small.mlp(norm=True), recipe=spy, **options)
    list(loop.run())
    return spy, loop


# ---------------------------------------------------------------------- batch norm


@pytest.mark.parametrize(("mode", "is_training"), [("eval", False), ("train", True)])
def test_attacks_see_the_mode_that_the_card_says(mode, is_training):
    assert spied(batch_norm=mode)[0].modes == {is_training}


def test_a_wrong_mode_during_the_attack_is_seen(monkeypatch):
    monkeypatch.setattr(
        trainer, "Lent", lambda *args, **options: Lent(*args, **options | {"is_eval": False})
    )
    assert spied(batch_norm="eval")[0].modes != {False}


def test_a_last_batch_of_one_does_not_stop_batch_norm():
    loop = small.loop(small.mlp(norm=True), batch_size=359, n_updates=3, batch_norm="train")
    assert loop.setup.samples.n_train == 360
    list(loop.run())
    assert loop.trainer.epochs == 3


# ---------------------------------------------------------------------- validation


def leaked(spy, loop):
    return set(spy.seen) & set(loop.setup.samples.split.validation.tolist())


def test_no_validation_sample_is_ever_trained_on():
    spy, loop = spied(n_updates=24)
    assert not leaked(spy, loop)
    assert set(spy.seen) == set(loop.setup.samples.split.train.tolist())  # and all others are


def test_a_validation_that_leaks_into_training_is_seen(monkeypatch):
    def batch(self, real, extra, smoothing=0.0):
        return sound(replace(self, split=replace(self.split, train=everything)), real, extra)

    everything = torch.arange(400)
    sound = samples.Samples.batch
    monkeypatch.setattr(samples.Samples, "batch", batch)
    monkeypatch.setattr(samples.Samples, "n_train", property(lambda self: 400))
    assert leaked(*spied(n_updates=24))


# ---------------------------------------------------------------------- the best weights

# Robust accuracy is best in the second validation, clean accuracy in the third.
SCRIPT = [(0.1, 0.1), (0.6, 0.3), (0.8, 0.5), (0.9, 0.2), (0.85, 0.1), (0.85, 0.1)]


def chosen(monkeypatch):
    """Number of the validation whose weights came back."""
    kept, script = [], iter(SCRIPT)

    def validate(step, *args, **options):
        kept.append([p.detach().clone() for p in step.network.parameters()])
        clean, robust = next(script)
        return Score(clean, robust, 100)

    monkeypatch.setattr(loop_module, "validate", validate)
    loop = small.loop(small.mlp(), average="none", n_updates=40)
    list(loop.run())
    final = [p.detach() for p in loop.trainer.network.parameters()]
    return [small.same(final, weights) for weights in kept].index(True)


def test_the_weights_that_come_back_are_the_most_robust_ones(monkeypatch):
    assert chosen(monkeypatch) == 2


def test_choosing_by_clean_accuracy_is_seen(monkeypatch):
    monkeypatch.setattr(Score, "value", property(lambda self: self.clean))
    assert chosen(monkeypatch) == 3


# ---------------------------------------------------------------------- averaged weights


def returns_the_average():
    """Whether the returned weights are the averaged ones, which the validation liked best."""
    loop = small.loop(small.mlp(), average="ema", ema_decay=0.9, n_updates=30)
    list(loop.run())
    values = loop.trainer.average.values
    state = loop.trainer.network.state_dict()
    return all(torch.equal(state[name], value) for name, value in values.items())


@pytest.fixture
def _averages_win(monkeypatch):
    count = iter(range(1000))

    def score(self, is_average=False):
        robust = (0.5 if is_average else 0.1) + 1e-3 * next(count)
        return Score(0.9, robust, 100, is_average=is_average)

    monkeypatch.setattr(loop_module.Loop, "_score", score)


@pytest.mark.usefixtures("_averages_win")
def test_averaged_weights_come_back_where_they_are_better():
    assert returns_the_average()


@pytest.mark.usefixtures("_averages_win")
@pytest.mark.parametrize("defect", ["never updated", "never swapped in"])
def test_an_average_that_is_not_used_is_seen(monkeypatch, defect):
    if defect == "never updated":
        monkeypatch.setattr(Average, "update", lambda self, progress: None)
    else:
        monkeypatch.setattr(Average, "swapped_in", lambda self: nullcontext())
    assert not returns_the_average()


# ---------------------------------------------------------------------- going on


def stopped(directory, stop):
    """Final weights where the training was left after so many events and taken up again."""
    for events_seen in ([stop] if stop else []) + [None]:
        loop = small.loop(small.mlp(norm=True), directory)
        events = loop.run()
        for n, _ in enumerate(events):
            if n == events_seen:
                break
        events.close()
    return small.weights(loop.trainer.network)


@pytest.fixture
def _often(monkeypatch):
    monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop_module, "_EVENT_SECONDS", 0.0)


@pytest.mark.usefixtures("_often")
def test_a_sampler_that_is_forgotten_is_seen(tmp_path, monkeypatch):
    whole = stopped(tmp_path / "whole", None)
    assert small.same(whole, stopped(tmp_path / "parts", 6))
    sound = State.from_dict
    forgetful = classmethod(lambda cls, content: sound(content | {"epoch": 0, "position": 0}))
    monkeypatch.setattr(State, "from_dict", forgetful)
    assert not small.same(whole, stopped(tmp_path / "forgotten", 6))
