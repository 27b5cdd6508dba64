"""Every recipe inside the training loop: it trains, stops, goes on, and ends with the same bits."""

import pytest
import torch
from torch import nn

from holdfast import registry
from holdfast.contracts.defenses import shortened
from holdfast.defenses.awp import AWP
from holdfast.defenses.trades import TRADES
from holdfast.hardening import checkpoint
from holdfast.hardening.events import Validated
from holdfast.hardening.harden import harden

RECIPES = [shortened(kind()) for kind in registry.recipes().values()]
RECIPES.append(shortened(AWP(TRADES())))
UPDATES = 4
SETTINGS = {
    "n_updates": UPDATES,
    "batch_size": 16,
    "optimiser": "adam",
    "learning_rate": 0.01,
    "average": "ema",
    "n_validation": 12,
    "validation_steps": 2,
    "updates_per_round": 2,
    "updates_per_check": 2,
    "ramp_share": 0.0,
}


def samples(n, seed):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n) % 3
    x[torch.arange(n), 0, y] = x[torch.arange(n), 0, y] / 2 + 0.5
    return x, y


def network():
    torch.manual_seed(0)
    middle = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*middle, nn.Linear(64, 3))


def trained(recipe, folder, **changes):
    threats = ["linf:0.05" if "linf" in recipe.card.norms else "l2:0.3"]
    if recipe.card.n_threats == 0:
        threats.append("l1:0.5")
    options = {**SETTINGS, **changes}
    stop = options.pop("stop", None)
    return harden(
        network(),
        samples(60, 0),
        threat=threats,
        recipe=recipe,
        epochs=1,
        audit=False,
        out=folder,
        on_event=stop,
        **options,
    )


class Stopped(Exception):
    pass


def stop_midway():
    """Stop at whatever the loop says next after its first round is written down."""
    is_written = []

    def listen(event):
        if is_written:
            raise Stopped
        if isinstance(event, Validated) and event.progress > 0:
            is_written.append(event)

    return listen


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.describe()[:40])
def test_trains_and_goes_on_where_it_stopped(recipe, tmp_path):
    whole = trained(recipe, tmp_path / "whole")
    assert whole.card.updates == UPDATES
    with pytest.raises(Stopped):
        trained(recipe, tmp_path / "stopped", stop=stop_midway())
    begun = checkpoint.load(tmp_path / "stopped" / checkpoint.LAST)
    assert begun is not None
    assert 0 < begun["state"]["index"] < UPDATES
    again = trained(recipe, tmp_path / "stopped")
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


def test_extra_data_goes_with_any_recipe(tmp_path):
    recipe = shortened(AWP(TRADES()))
    mixed = trained(recipe, tmp_path, extra=samples(40, 1), extra_share=0.5)
    assert mixed.card.updates == UPDATES
    assert mixed.card.settings["extra_share"] == 0.5
    assert mixed.card.epochs == pytest.approx(UPDATES / 6)  # 8 of 48 real samples per batch
