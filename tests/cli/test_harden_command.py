"""``holdfast harden`` as a person types it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.cli.harden import _directory
from holdfast.demo import digits_cnn
from holdfast.hardening.card import HardenCard

RUN = CliRunner()
OPTIONS = ["--threat", "linf:0.1", "--recipe", "pgd_training(attack=pgd(steps=1))"]


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "given.pt"
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), path)
    return path


def harden(weights, *more, n=200, epochs="1"):
    command = ["harden", "holdfast.demo:digits_cnn", "--weights", str(weights)]
    command += ["--data", "digits:train", "--n", str(n), *OPTIONS]
    return RUN.invoke(app, [*command, "--epochs", epochs, "--audit-n", "0", *more])


def test_the_card_the_model_and_a_second_call(weights, tmp_path):
    content = weights.read_bytes()
    out = tmp_path / "out"
    first = harden(weights, "--out", str(out))
    assert first.exit_code == 0, first.output
    assert "Repeat it" in first.output
    assert weights.read_bytes() == content
    state = torch.load(out / "hardened.pt", weights_only=True)
    digits_cnn().load_state_dict(state)
    card = HardenCard.load(out)
    assert card.recipe.startswith("pgd_training(attack=pgd(steps=1")
    again = harden(weights, "--out", str(out))
    assert again.exit_code == 0
    assert "is finished" in again.output


def test_json_is_one_event_a_line_and_the_card_last(weights, tmp_path):
    result = harden(weights, "--out", str(tmp_path / "out"), "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [line.get("event") for line in lines[:-1]]
    assert "chosen" in kinds
    assert "validated" in kinds
    assert lines[-1]["version"] == 1
    assert HardenCard.model_validate(lines[-1]).updates > 0


def test_settings_can_be_fixed(weights, tmp_path):
    result = harden(
        weights, "--out", str(tmp_path / "o"), "--set", "batch_size=50", "--set", "average=swa"
    )
    assert result.exit_code == 0, result.output
    card = HardenCard.load(tmp_path / "o")
    assert (card.settings["batch_size"], card.settings["average"]) == (50, "swa")


def test_the_same_options_name_the_same_directory():
    given = {"model": "a.b:net(3)", "data": "d", "epochs": 3.0, "device": None}
    assert _directory(given) == _directory(given | {"device": "cuda"})
    assert _directory(given) != _directory(given | {"epochs": 4.0})
    assert _directory(given).name.startswith("holdfast-harden-net-")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "batchsize=3"], "Unknown setting"),
        (["--set", "batch_size"], "name=value"),
        (["--set", "batch_size=zero"], "batch_size"),
        (["--recipe", "tradez"], "Unknown recipe"),
        (["--threat", "linf:7"], "larger than the whole"),
        (["--budget", "100passes"], "is a time"),
        (["--budget", "1min"], "either a budget"),
        (["--group", "age"], "names a column of a table"),
    ],
)
def test_bad_options_are_explained(weights, tmp_path, more, said):
    result = harden(weights, "--out", str(tmp_path / "out"), *more)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out" / "last.pt").exists()


def test_the_list_of_recipes_comes_from_their_cards():
    result = RUN.invoke(app, ["list", "recipes"])
    assert result.exit_code == 0
    assert "pgd_training" in result.output
    assert "arXiv:1706.06083" in " ".join(result.output.split())
