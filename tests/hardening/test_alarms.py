"""Planted failures: each is noticed, told, and acted on."""

from dataclasses import dataclass, replace
from typing import ClassVar

import hardening_tools as small
import pytest
import torch
from torch import nn

from holdfast.attacks.pgd import PGD
from holdfast.data import ArrayData
from holdfast.defenses.base import Batch, Card, Recipe, Step
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.events import Found
from holdfast.hardening import alarms
from holdfast.hardening.asking import Ask, make_fabric, prepare
from holdfast.hardening.events import RolledBack, Validated
from holdfast.hardening.loop import Loop
from holdfast.hardening.trainer import Setup
from holdfast.hardening.validation import Score, Watch, watch
from holdfast.modalities import load
from holdfast.model import Model
from holdfast.threat import parse_threat

SOUND = Watch(
    ramp=1.0,
    clean=0.97,
    single_step=0.8,
    several_steps=0.72,
    noise=0.96,
    alignment=0.9,
    zero_gradients=0.0,
)


@dataclass(frozen=True, slots=True)
class Poisoned(Recipe):
    """PGD training whose loss is NaN once, at one update."""

    at: int = 7

    card: ClassVar[Card] = replace(PGDTraining.card, name="poisoned")

    @property
    def passes(self) -> float:
        return 2.0

    def loss(self, step: Step, batch: Batch) -> torch.Tensor:
        loss = batch.cross_entropy(step.logits(batch.x)).mean()
        return loss * float("nan") if step.index == self.at else loss


def test_sound_training_raises_no_alarm():
    assert alarms.collapse(SOUND, SOUND, is_single_step=True) is None
    assert alarms.label_leaking(SOUND, 0.1) is None
    assert alarms.masked_gradients(SOUND) is None


def test_a_fall_under_several_steps_alone_is_a_collapse():
    now = replace(SOUND, several_steps=0.3, single_step=0.85)
    for is_single_step in (True, False):
        alarm = alarms.collapse(now, SOUND, is_single_step)
        assert alarm is not None
        assert (alarm.code, alarm.action) == ("catastrophic_overfitting", "switch")
    grown = replace(SOUND, ramp=0.5)
    assert alarms.collapse(now, grown, is_single_step=False) is None  # another radius: no fall


def test_label_leaking_and_masked_gradients_are_told_apart():
    leaking = alarms.label_leaking(replace(SOUND, single_step=1.0, clean=0.9), 0.1)
    assert leaking is not None
    assert leaking.code == "label_leaking"
    silent = alarms.masked_gradients(replace(SOUND, zero_gradients=0.9, several_steps=0.96))
    assert silent is not None
    beaten = alarms.masked_gradients(replace(SOUND, noise=0.5))
    assert beaten is not None
    assert "random changes" in beaten.text


def test_robust_overfitting_needs_several_rounds():
    good, bad = Score(0.9, 0.5, 100), Score(0.95, 0.4, 100)
    assert alarms.robust_overfitting([good, bad, bad]) is None
    assert alarms.robust_overfitting([good, bad, bad, Score(0.9, 0.49, 100)]) is None
    alarm = alarms.robust_overfitting([good, bad, bad, bad])
    assert alarm is not None
    assert alarm.action == "tell"


def test_chance_level_is_news_only_after_the_start():
    stuck = Score(0.12, 0.1, 100)
    assert alarms.chance_level(stuck, 0.11, was_above=False, progress=0.05) is None
    assert alarms.chance_level(stuck, 0.11, was_above=True, progress=0.05) is not None
    assert alarms.chance_level(stuck, 0.11, was_above=False, progress=0.5) is not None


def test_a_nan_loss_is_rolled_back_and_the_end_is_finite(tmp_path):
    loop = small.loop(small.fitted(5), tmp_path, recipe=Poisoned(7), n_updates=30)
    events = list(loop.run())
    back = [e for e in events if isinstance(e, RolledBack)]
    assert [e.code for e in back] == ["not_finite"]
    assert loop.trainer.state.rate_scale < 1
    assert all(bool(torch.isfinite(p).all()) for p in loop.trainer.network.parameters())
    last = [e for e in events if isinstance(e, Validated)][-1]
    assert last.clean_accuracy > 0.5


def test_a_loss_that_is_always_nan_ends_and_returns_the_given_weights(tmp_path):
    @dataclass(frozen=True, slots=True)
    class Broken(Poisoned):
        def loss(self, step: Step, batch: Batch) -> torch.Tensor:
            return batch.cross_entropy(step.logits(batch.x)).mean() * float("nan")

    net = small.fitted(3)
    loop = small.loop(net, tmp_path, recipe=Broken(), n_updates=500)
    list(loop.run())
    assert loop.trainer.state.index < 500
    assert small.same(small.weights(net), small.weights(loop.trainer.network.module))


def test_chance_level_rolls_back_to_a_longer_ramp(tmp_path):
    """A rate that destroys the weights: at chance, back, and on more slowly."""
    loop = small.loop(
        small.fitted(5),
        tmp_path,
        optimiser="sgd",
        learning_rate=300.0,
        n_updates=60,
        schedule="constant",
        average="none",
    )
    events = list(loop.run())
    assert {e.code for e in events if isinstance(e, RolledBack)} <= {"chance_level", "not_finite"}
    assert loop.trainer.state.n_rollbacks > 0
    assert loop.trainer.state.best is not None
    assert loop.trainer.state.best.clean > 0.5  # the given weights, at the least


def test_masked_gradients_are_seen_in_a_network_that_rounds():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small.fitted(3)

        def forward(self, x):
            return self.net((x * 8).round() / 8)

    loop = small.loop(small.fitted(1))
    loop.trainer.network.module = Rounds()
    loop.setup.model.f = loop.trainer.network.module
    now = watch(loop.trainer.step, loop.setup.samples)
    assert now.zero_gradients == 1.0
    assert alarms.masked_gradients(now) is not None


@pytest.mark.slow
def test_catastrophic_overfitting_is_noticed_rolled_back_and_mended(data, tmp_path):
    """FGSM with random start, linf 0.3, step 0.375, on MNIST: a plain script ends near 14 %."""
    mnist = load(str(data / "mnist" / "train-images-idx3-ubyte.gz"), None, 12_000)
    images = ArrayData(*mnist.fetch(range(len(mnist))))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    threat = parse_threat("linf:0.3")
    asked = Ask(Model(net), images, (threat,), epochs=8)
    ready = prepare(asked, small.CPU)
    recipe = SingleStep(PGD(steps=1, step_size=0.375))
    settings = small.settings(
        n_updates=8 * 108,
        batch_size=100,
        learning_rate=5e-3,
        ramp_share=0.3,
        n_validation=300,
        updates_per_round=108,
        updates_per_check=54,
        validation_steps=10,
        average="none",
    )
    fabric = make_fabric(small.CPU, "32-true")
    setup = Setup(ready.model, ready.samples, asked.threats, recipe, settings, fabric)
    loop = Loop(setup, tmp_path)
    events = list(loop.run())
    back = [e for e in events if isinstance(e, RolledBack)]
    assert [e.code for e in back][:1] == ["catastrophic_overfitting"]
    assert "pgd(steps=3" in back[0].recipe
    assert loop.trainer.state.best is not None
    assert loop.trainer.state.best.robust > 0.5


@dataclass(frozen=True, slots=True)
class SingleStep(Recipe):
    """FGSM with random start (Wong et al., 2020), as wrongly tuned as they warn of."""

    attack: PGD

    card: ClassVar[Card] = replace(PGDTraining.card, name="single_step", is_single_step=True)

    @property
    def passes(self) -> float:
        return 4.0

    def craft(self, step: Step, batch: Batch) -> Batch:
        return replace(batch, x_adv=step.attack(batch, self.attack))

    def loss(self, step: Step, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy(step.logits(batch.adversarial)).mean()

    def safer(self) -> Recipe:
        return PGDTraining(PGD(steps=3))


def test_alarms_are_told_once(tmp_path):
    loop = small.loop(small.fitted(1), tmp_path)
    alarm = alarms.Alarm("robust_overfitting", "falls", "tell")
    told = [*loop._tell(alarm), *loop._tell(alarm)]
    assert [type(e) for e in told] == [Found]
