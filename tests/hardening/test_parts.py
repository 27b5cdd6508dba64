"""Schedules, averages, augmentation, the clock: each against what it must be."""

import hardening_tools as small
import pytest
import torch
from torch import nn

from holdfast.engine.random import Rng
from holdfast.errors import PlanError
from holdfast.hardening import augment
from holdfast.hardening.averaging import Average, fresh_batch_norm
from holdfast.hardening.clock import Clock
from holdfast.hardening.schedules import SCHEDULES, learning_rate_share
from holdfast.hardening.step import own_batch


def share(name, p, restart=None):
    return learning_rate_share(name, p, 0.4, restart)


def test_schedules_start_peak_and_end_where_they_should():
    assert share("cyclic", 0.0) == 0
    assert share("cyclic", 0.4) == pytest.approx(1)
    assert share("cyclic", 0.7) == pytest.approx(0.5)
    assert share("cyclic", 1.0) == 0
    assert share("cosine", 0.04) == pytest.approx(1)
    assert share("cosine", 1.0) == pytest.approx(0, abs=1e-9)
    assert [share("piecewise", p) for p in (0.1, 0.5, 0.9)] == [1.0, 0.1, 0.01]
    assert share("constant", 0.9) == 1
    with pytest.raises(PlanError, match="cyclic, cosine"):
        share("stairs", 0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_a_roll_back_every_schedule_falls_to_zero(name):
    assert share(name, 0.6, 0.6) == pytest.approx(1)
    assert share(name, 0.8, 0.6) == pytest.approx(0.5)
    assert share(name, 1.0, 0.6) == 0


def test_ema_is_the_weighted_mean_of_the_weights():
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, "ema", 0.5)
    expected = net.weight.item()
    for value in (1.0, 5.0, -3.0):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(0.1)
        weight = max(0.5, 9 / (average.n + 9))
        expected += weight * (value - expected)
    assert float(average.values["weight"]) == pytest.approx(expected)
    with average.swapped_in():
        assert net.weight.item() == pytest.approx(expected)
    assert net.weight.item() == -3.0


def test_swa_is_the_plain_mean_of_the_last_quarter():
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, "swa", 0.9)
    for progress, value in ((0.5, 100.0), (0.8, 1.0), (0.9, 2.0), (1.0, 6.0)):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(progress)
    assert float(average.values["weight"]) == pytest.approx(3.0)


def test_batch_norm_statistics_are_those_of_the_batches_seen():
    net = nn.BatchNorm1d(1)
    net(torch.randn(50, 1) * 9 + 30)
    momentum = net.momentum
    with fresh_batch_norm(net):
        for value in (1.0, 3.0):
            net(torch.tensor([[value - 1], [value + 1]]))
    assert float(net.running_mean[0]) == pytest.approx(2.0)
    assert net.momentum == momentum


def images(n=16):
    x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + 0.1
    return own_batch(x, torch.arange(n) % 4)


def test_a_shift_moves_every_image_by_its_own_amount():
    batch = images()
    moved = augment.shifted(batch.x, Rng(batch.ids))
    amounts = set()
    for image, original in zip(moved, batch.x, strict=True):
        found = [
            (i, j)
            for i in range(-2, 3)
            for j in range(-2, 3)
            if torch.equal(image, _shifted(original, i, j))
        ]
        assert len(found) == 1
        amounts.add(found[0])
    assert len(amounts) > 5


def _shifted(image, down, right):
    padded = nn.functional.pad(image, (2, 2, 2, 2))
    return padded[:, 2 + down : 18 + down, 2 + right : 18 + right]


def test_augmentation_hangs_on_the_sample_alone():
    batch = images()
    names = ("crop", "flip")
    whole = augment.augmented(batch, names, Rng(batch.ids)).x
    half = own_batch(batch.x[8:], batch.y[8:])
    again = augment.augmented(half, names, Rng(batch.ids[8:])).x
    assert torch.equal(again, whole[8:])
    mirrored = augment.augmented(batch, ("flip",), Rng(batch.ids)).x
    is_mirrored = (mirrored == batch.x.flip(3)).flatten(1).all(1)
    is_same = (mirrored == batch.x).flatten(1).all(1)
    assert bool((is_mirrored ^ is_same).all())
    assert 0 < int(is_mirrored.sum()) < len(batch)


def test_cutmix_weighs_both_labels_by_area():
    batch = images(64)
    mixed = augment.cut_and_mixed(batch, Rng(batch.ids))
    assert mixed.share is not None
    other = batch.x.roll(-1, 0)
    from_other = (mixed.x == other) & (mixed.x != batch.x)
    torch.testing.assert_close(1 - from_other.flatten(1).float().mean(1), mixed.share)
    assert float((mixed.share < 1).float().mean()) == pytest.approx(0.5, abs=0.2)
    logits = torch.randn(64, 4)
    ce = nn.functional.cross_entropy
    expected = mixed.share * ce(logits, batch.y, reduction="none") + (1 - mixed.share) * ce(
        logits, batch.y.roll(-1), reduction="none"
    )
    torch.testing.assert_close(mixed.cross_entropy(logits), expected)


def test_augmentations_that_do_not_fit_are_refused():
    with pytest.raises(PlanError, match="are for images"):
        augment.check(("flip",), (20,))
    with pytest.raises(PlanError, match="crop, flip, cutmix"):
        augment.check(("mixup",), (3, 32, 32))


def test_the_clock_counts_updates_or_seconds():
    by_updates = Clock(small.settings(n_updates=40))
    assert by_updates.progress(10) == 0.25
    assert by_updates.progress(50) == 1
    by_time = Clock(small.settings(n_updates=None, seconds=1000.0), spent=600.0)
    assert by_time.progress(3) == pytest.approx(0.6, abs=0.01)
    assert by_time.left(3) == pytest.approx(400, abs=5)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    whole = small.loop(small.mlp(), n_updates=3, average="none", optimiser="sgd")
    parts = small.loop(small.mlp(), n_updates=3, average="none", optimiser="sgd", accumulate=3)
    for loop in (whole, parts):
        trainer = loop.trainer
        for _, rows in zip(range(3), trainer.batches(), strict=False):
            list(trainer.updates(rows, 0.5))
    for a, b in zip(
        small.weights(whole.trainer.network), small.weights(parts.trainer.network), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
