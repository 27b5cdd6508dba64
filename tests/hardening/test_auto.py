"""What a budget buys: dearer recipes for more time, and a reason for each."""

from dataclasses import replace

import hardening_tools as small
import pytest
import torch
from torch import nn

from holdfast import registry
from holdfast.attacks.pgd import PGD
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.errors import PlanError
from holdfast.hardening import auto
from holdfast.hardening.alarms import is_single_step
from holdfast.hardening.asking import make_fabric, prepare
from holdfast.hardening.recipe_text import parse_recipe
from holdfast.hardening.trainer import Setup

COSTS = auto.Costs(batch_size=64, fixed_s=0.01, step_s=0.005)


def asked(seconds=None, epochs=None, **options):
    values = {"recipe": None, "from_scratch": False, "start": 0.0, "fixed": {}} | options
    return auto.Asked(seconds, epochs, **values)


def setup(net=None):
    question = small.ask(net or small.mlp())
    ready = prepare(question, small.CPU)
    fabric = make_fabric(small.CPU, "32-true")
    first = small.settings()
    return Setup(ready.model, ready.samples, question.threats, PGDTraining(), first, fabric)


def chosen(monkeypatch, seconds=None, epochs=None, **options):
    monkeypatch.setattr(auto, "measure", lambda setup, size, s: replace(COSTS, batch_size=size))
    return auto.choose(asked(seconds, epochs, **options), setup())


def test_more_time_buys_dearer_recipes(monkeypatch):
    """One epoch of 360 samples: 8 updates, 0.12 s with one step, 0.48 s with ten."""
    passes = []
    for seconds in (0.16, 0.4, 1.0, 3.0, 30.0):
        choice = chosen(monkeypatch, seconds)
        passes.append(choice.recipe.passes)
        assert choice.settings.seconds == seconds
        assert any("budget buys" in reason for reason in choice.reasons)
    assert passes == sorted(passes)
    assert passes[0] < passes[-1]


def test_the_least_time_is_single_step_and_watched_closely(monkeypatch):
    choice = chosen(monkeypatch, 0.16)
    assert is_single_step(choice.recipe)
    assert choice.settings.updates_per_check <= choice.settings.updates_per_round


def test_from_scratch_the_radius_grows_and_a_robust_start_needs_no_ramp(monkeypatch):
    assert chosen(monkeypatch, 3.0, from_scratch=True).settings.ramp_share == 0.5
    assert chosen(monkeypatch, 3.0, start=0.8).settings.ramp_share == 0.0


def test_what_the_user_fixes_stays(monkeypatch):
    mine = PGDTraining(PGD(steps=4))
    choice = chosen(
        monkeypatch, epochs=2, recipe=mine, fixed={"batch_size": 90, "optimiser": "sgd"}
    )
    assert choice.recipe == mine
    assert choice.settings.batch_size == 90
    assert choice.settings.optimiser == "sgd"
    assert choice.settings.n_updates == 8  # 360 samples, two epochs


def test_what_is_chosen_for_epochs_hangs_on_no_measurement(monkeypatch):
    """A machine that is slow now and then fast must come to the same settings."""
    found = []
    for power in (0, 1):  # small batches cost as much as large ones, or in proportion
        monkeypatch.setattr(
            auto,
            "measure",
            lambda setup, size, s, power=power: auto.Costs(
                size, 1e-4 * size**power, 1e-4 * size**power
            ),
        )
        found.append(auto.choose(asked(epochs=2), setup()))
    assert found[0].settings == found[1].settings
    assert found[0].recipe == found[1].recipe


def test_too_little_time_names_what_would_do(monkeypatch):
    with pytest.raises(PlanError, match=r"--budget \d+s"):
        chosen(monkeypatch, 0.02)


def test_measuring_leaves_the_weights_as_they_were():
    question = setup()
    before = small.weights(question.model.f)
    costs = auto.measure(question, 64, 0.2)
    assert small.same(before, small.weights(question.model.f))
    assert costs.step_s > 0
    assert costs.update_s(10) > costs.update_s(1)


def test_networks_get_the_optimiser_of_their_kind():
    normed, _ = auto._optimiser(small.mlp(norm=True), True, 128)
    plain, _ = auto._optimiser(small.mlp(), True, 128)
    layered, _ = auto._optimiser(nn.Sequential(nn.LayerNorm(3)), True, 128)
    assert (normed["optimiser"], plain["optimiser"]) == ("sgd", "adam")
    assert layered["optimiser"] == "adamw"
    assert auto.best_precision(torch.device("cpu"), small.mlp()) == "32-true"


@pytest.mark.parametrize("name", sorted(registry.recipes()))
def test_every_recipe_can_be_written_down_and_read_again(name):
    try:
        recipe = registry.recipe(name)
    except PlanError:
        pytest.skip("needs options that are objects")
    try:
        again = parse_recipe(recipe.describe())
    except PlanError as error:
        pytest.fail(f"{recipe.describe()} cannot be read: {error}")
    assert again == recipe


def test_recipes_nest_in_text():
    recipe = parse_recipe("awp(pgd_training(attack=pgd(steps=3)), gamma=0.01)")
    assert recipe.describe().startswith("awp(recipe=pgd_training(attack=pgd(steps=3")
    for wrong in ("trades(", "1 + 2", "pgd", "awp(3 + x)"):
        with pytest.raises(PlanError):
            parse_recipe(wrong)
