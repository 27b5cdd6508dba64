"""What other libraries get wrong around their attacks must hold here: one test each."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast import PGD, Model
from holdfast.contracts._toys import Modes, Net, inputs
from holdfast.errors import DataError, ModelCrash, ModelError

QUICK = [{"attack": "pgd", "steps": 5}, {"attack": "square", "queries": 20}]


def answers(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def audited(model, data, threat, **options):
    return holdfast.audit(model, data, threat, cascade=QUICK, curve_steps=0, **options)


class Mortal(nn.Module):
    """Raises after ``left`` calls."""

    def __init__(self, net, left=10**9):
        super().__init__()
        self.net, self.left, self.n_calls = net, left, 0

    def forward(self, x):
        self.n_calls += 1
        if self.n_calls > self.left:
            raise RuntimeError("out of power")
        return self.net(x)


def test_a_stopped_run_goes_on_and_returns_what_it_had_found(tmp_path):
    net, x = Net(8, 3), inputs(1, 24)
    y = answers(net, x)
    model = Mortal(net)
    whole = audited(model, (x, y), "linf:0.15", out=tmp_path / "whole", batch_size=4)
    dying, parts = Mortal(net, int(0.8 * model.n_calls)), tmp_path / "parts"
    with pytest.raises(ModelCrash, match="out of power"):
        audited(dying, (x, y), "linf:0.15", out=parts, batch_size=4)
    last = Mortal(net)
    resumed = audited(last, (x, y), "linf:0.15", out=parts, batch_size=4)
    assert last.n_calls < model.n_calls  # it did go on
    assert resumed.robust_accuracy.value == whole.robust_accuracy.value
    both = zip(resumed.adversarial(), whole.adversarial(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in both)


def test_every_module_keeps_a_mode_of_its_own():
    model, x = Modes(8, 3), inputs(1, 8)
    audited(model, (x, torch.arange(8) % 3), "linf:0.1")
    assert model.training
    assert model.drop.training
    assert not model.norm.training


def test_no_gradient_is_left_in_the_weights():
    model, x = Net(8, 3), inputs(1, 8)
    audited(model, (x, answers(model, x)), "linf:0.1")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_gradients_wait_for_the_optimizer_unharmed():
    model, x = Net(8, 3), inputs(1, 8)
    model(x).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    PGD(steps=3)(model, x, answers(model, x), "linf:0.1")
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_dropout_is_off_while_a_model_in_training_mode_is_audited():
    model, x = Modes(8, 3), inputs(1, 8)
    model.eval()
    y = answers(model, x)
    model.train()
    assert audited(model, (x, y), "linf:0.001").clean_accuracy.value == 1.0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_no_room_gives_exactly_the_clean_accuracy(norm):
    model, x = Net(8, 3), inputs(1, 20)
    y = answers(model, x)
    y[:5] = (y[:5] + 1) % 3
    report = audited(model, (x, y), f"{norm}:0")
    assert report.clean_accuracy.value == 0.75
    assert report.robust_accuracy.value == 0.75


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda x: x * 255, "divide"),
        (lambda x: (x - 0.5) / 0.25, "normalised"),
        (lambda x: x.masked_fill(x > 0.9, torch.nan), "NaN"),
    ],
    ids=["pixels to 255", "normalised", "NaN"],
)
def test_inputs_outside_the_domain_are_refused_with_the_likely_cause(spoil, hint):
    x = inputs(1, 12)
    with pytest.raises(DataError, match=hint):
        PGD()(Net(8, 3), spoil(x), torch.zeros(12, dtype=torch.int64), "linf:0.1")


def test_rounding_at_the_edge_of_the_domain_is_no_reason_to_refuse():
    """A minimum of -2.98e-08 is what undoing a normalisation leaves."""
    model, x = Net(8, 3), inputs(1, 6)
    x[0, 0] = -2.98e-08
    x_adv = PGD(steps=3)(model, x, answers(model, x), "linf:0.1")
    assert x_adv.min() >= 0


def test_normalisation_is_given_once_and_the_radius_is_in_input_units():
    mean, std, net = 0.4, 0.2, Net(8, 3)
    x = inputs(1, 10)
    y = answers(net, (x - mean) / std)
    x_adv = PGD(steps=10)(Model(net, mean=mean, std=std), x, y, "linf:0.03", stop="budget")
    assert 0.029 < (x_adv - x).abs().max() <= 0.03 + 1e-6
    inside = Model(lambda x: net((x - mean) / std))
    assert torch.allclose(x_adv, PGD(steps=10)(inside, x, y, "linf:0.03", stop="budget"))


def test_labels_beyond_the_head_are_refused():
    with pytest.raises(DataError, match="labels go up to 3"):
        PGD()(Net(8, 3), inputs(1, 4), torch.tensor([0, 1, 2, 3]), "linf:0.1")


def test_a_model_that_mixes_its_batch_is_refused():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(8, 3)

        def forward(self, x):
            return self.net(x) - self.net(x).mean(0)

    with pytest.raises(ModelError, match="depends on the other inputs"):
        PGD()(Mixes(), inputs(1, 6), torch.zeros(6, dtype=torch.int64), "linf:0.1")


def test_robust_accuracy_counts_clean_mistakes_and_the_worst_attack():
    model, x = Net(8, 3), inputs(1, 20)
    y = answers(model, x)
    y[:4] = (y[:4] + 1) % 3
    report = audited(model, (x, y), "linf:0.05")
    stages = [audited_alone(model, (x, y), stage) for stage in QUICK]
    assert report.robust_accuracy.value <= report.clean_accuracy.value
    assert report.robust_accuracy.value <= min(stages) + 1e-9


def audited_alone(model, data, stage):
    report = holdfast.audit(model, data, "linf:0.05", cascade=[stage], curve_steps=0)
    return report.robust_accuracy.value


def test_success_on_a_random_model_is_the_majority_of_fresh_draws():
    """One lucky draw must not count: the answer here is right in 85 of 100 draws."""

    class Coin(nn.Module):
        def forward(self, x):
            flip = (torch.rand(len(x)) < 0.15).float()
            z = 4 * (1 - 2 * flip) + 0 * x.sum(1)
            return torch.stack([z, -z], 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = inputs(1, 12)
        report = audited(Coin(), (x, torch.zeros(12, dtype=torch.int64)), "linf:0.1")
    assert report.robust_accuracy.value == 1.0


def test_no_seed_is_taken_from_the_clock():
    model, x = Net(8, 3), inputs(1, 6)
    y = answers(model, x)
    attack = PGD(steps=3)
    runs = [attack(model, x, y, "linf:0.1", stop="budget") for _ in range(2)]
    assert torch.equal(*runs)


def test_a_switch_takes_no_text():
    """Elsewhere ``--to_disk False`` means true, as any text does."""
    from holdfast.cli import app

    words = ["audit", "m.pt2", "--data", "d.npz", "--threat", "linf:0.1", "--targeted", "False"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "False" in result.output


def test_nothing_is_imported_that_python_no_longer_has():
    sources = Path(holdfast.__file__).parent.rglob("*.py")
    gone = re.compile(r"^\s*(from|import) (distutils|imp|pkg_resources)\b", re.MULTILINE)
    assert not [path for path in sources if gone.search(path.read_text(encoding="utf-8"))]
