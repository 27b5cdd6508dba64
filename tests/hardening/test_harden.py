"""``harden`` from end to end: what comes out, what stays as it was, what is refused."""

import time
from dataclasses import replace

import hardening_tools as small
import pytest
import torch
from torch import nn

import holdfast
from holdfast.attacks.pgd import PGD
from holdfast.data import ArrayData
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.errors import DataError, JournalError, ModelError, PlanError, ThreatError
from holdfast.hardening import auditing, checkpoint, samples
from holdfast.hardening.card import HardenCard
from holdfast.hardening.events import Chosen, Training, Validated
from holdfast.hardening.harden import harden, listen, run_hardening

QUICK = PGDTraining(PGD(steps=2))


@pytest.fixture(autouse=True)
def _quick_audits(monkeypatch):
    monkeypatch.setattr(auditing, "CASCADE", "quick")


def run(net=None, train=None, **options):
    train = train or small.digits(500)
    options = {"threat": small.THREAT, "recipe": QUICK, "epochs": 3, "audit": False} | options
    if "budget" in options:
        options["epochs"] = None
    return harden(net or small.fitted(3), train, **options)


def test_a_model_gets_harder_to_fool_and_the_card_says_what_it_cost(tmp_path):
    net = small.fitted(8)
    before = small.weights(net)
    events = []
    result = run(
        net,
        small.digits(),
        epochs=12,
        audit=True,
        n_audit=12,
        test=small.digits(part="test"),
        out=tmp_path,
        on_event=events.append,
    )
    assert small.same(before, small.weights(net))  # the user's object is as it was
    assert all(p.grad is None for p in net.parameters())
    card = result.card
    assert card.gain[small.THREAT] > 0.1
    assert card.passes > 0
    assert sum(isinstance(e, Chosen) for e in events) == 1
    assert "12 test samples" in card.audited_on
    assert HardenCard.load(tmp_path) == card
    page = (tmp_path / "card.html").read_text()
    assert "What got worse" in page
    assert str(result.directory) == str(tmp_path)
    assert result.after is not None
    assert "Robust accuracy" in str(card)
    x, y = small.digits(part="test").fetch(range(12))
    fooled = PGD(steps=20)(result.module, x, y, small.THREAT)
    held = (result.module(fooled).argmax(1) == y).float().mean()
    assert float(held) >= result.after.robust_accuracy.value - 1e-6  # the audit is the stronger


def test_the_saved_weights_are_those_of_the_result(tmp_path):
    from safetensors.torch import load_file

    result = run(out=tmp_path)
    state = load_file(tmp_path / "hardened.safetensors")
    assert all(torch.equal(state[name], t) for name, t in result.module.state_dict().items())


@pytest.mark.parametrize("written", [torch.jit.trace, lambda net, _: torch.jit.script(net)])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_trained_like_its_module(written):
    net = small.fitted(3)
    script = written(net, small.digits().x[:2])
    before = small.weights(script)
    result = run(script, epochs=1)
    assert small.same(before, small.weights(script))
    assert small.same(small.weights(run(net, epochs=1).module), small.weights(result.module))


def test_an_exported_program_comes_back_as_one(tmp_path):
    net, batch = small.fitted(2), torch.export.Dim("batch")
    example = torch.zeros(2, 1, 8, 8)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: batch},))
    source = tmp_path / "model.pt2"
    torch.export.save(program, source)
    content = source.read_bytes()
    result = run(str(source), out=tmp_path / "out", epochs=2)
    assert source.read_bytes() == content
    from holdfast.loading import load_model

    again = load_model(str(tmp_path / "out" / "hardened.pt2"))
    x, _ = small.digits().fetch(range(5))
    torch.testing.assert_close(again.f(x), result.module(x))
    assert not torch.equal(again.f(x), net(x))


def test_the_same_call_goes_on_and_another_is_refused(tmp_path):
    first = run(out=tmp_path)
    again = run(out=tmp_path)
    assert small.same(small.weights(first.module), small.weights(again.module))
    with pytest.raises(JournalError, match="another hardening"):
        run(out=tmp_path, epochs=4)


def test_a_stopped_budget_goes_on_with_the_same_audit(tmp_path, monkeypatch):
    asked = small.ask(small.fitted(3), seconds=6.0, audit=True, recipe=QUICK)
    events = run_hardening(asked, tmp_path)
    for event in events:
        if isinstance(event, Training):
            break
    events.close()
    monkeypatch.setattr(auditing.Audits, "_affordable", lambda self: 7)  # another time, another n
    again = listen(run_hardening(asked, tmp_path), None)
    assert again.before is not None
    assert again.after is not None
    assert again.before.n_samples == again.after.n_samples != 7


def test_from_scratch_goes_on_with_a_network_built_anew(tmp_path):
    """The same command builds another random network; what it trains is renewed by the seed."""
    options = {"seconds": 6.0, "audit": True, "recipe": QUICK, "from_scratch": True}
    events = run_hardening(small.ask(small.mlp(seed=1), **options), tmp_path)
    for event in events:
        if isinstance(event, Training):
            break
    events.close()
    again = listen(run_hardening(small.ask(small.mlp(seed=2), **options), tmp_path), None)
    assert again.before is not None
    assert again.card.before is not None
    assert again.card.before.clean.value < 0.5


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (run(seed=seed, epochs=1) for seed in (0, 0, 1))
    assert small.same(small.weights(first.module), small.weights(again.module))
    assert not small.same(small.weights(first.module), small.weights(other.module))


def test_a_budget_of_time_is_kept(tmp_path):
    began = time.monotonic()
    result = run(budget="9s", train=small.digits(), audit=True, out=tmp_path)
    taken = time.monotonic() - began
    assert taken < 9 * 1.1 + 2.5  # what a busy machine adds to the last validation
    assert result.card.training_seconds > 3
    assert result.card.after is not None


def test_training_from_scratch_starts_from_other_weights(tmp_path):
    net = small.fitted(8)
    events: list = []
    result = run(net, from_scratch=True, on_event=events.append)
    first = next(e for e in events if isinstance(e, Validated))
    assert first.clean_accuracy < 0.5
    assert not small.same(small.weights(net), small.weights(result.module))


def test_validation_is_stratified_and_apart_from_training_and_test():
    data = small.digits()
    split = samples.stratified(data.y, seed=3)
    assert not set(split.train.tolist()) & set(split.validation.tolist())
    assert len(split.train) + len(split.validation) == len(data)
    counts = data.y[split.validation].bincount().float() / data.y.bincount()
    assert float(counts.min()) > 0.07
    assert float(counts.max()) < 0.13
    assert torch.equal(split.validation, samples.stratified(data.y, seed=3).validation)


def test_test_samples_in_the_training_data_are_told():
    data = small.digits(500)
    overlap = ArrayData(data.x[:30], data.y[:30])
    result = run(train=data, test=overlap)
    assert "30 of 30 test samples" in next(
        w.text for w in result.card.warnings if w.code == "test_in_training"
    )


def test_validation_samples_are_taken_out_of_the_training_data():
    data = small.digits(500)
    loop_samples = samples.gather(
        data, holdfast.Model(small.mlp()), 0, ArrayData(data.x[:50], data.y[:50]), None
    )
    assert loop_samples.n_train == 450
    assert int(loop_samples.split.train.min()) == 50


def test_extra_samples_are_mixed_in():
    extra = ArrayData(*small.digits(part="test").fetch(range(100)))
    result = run(extra=extra, extra_share=0.25, epochs=1)
    assert result.card.settings["extra_share"] == 0.25
    with pytest.raises(DataError, match="validation samples"):
        run(extra=small.digits(500), extra_share=0.5)


def test_no_gain_is_told():
    result = run(learning_rate=1e-12, epochs=0.2)
    assert "no_gain" in [w.code for w in result.card.warnings]


# ---------------------------------------------------------------------- bad input


def test_no_validation_split_possible():
    data = small.digits(12)
    with pytest.raises(DataError, match=r"set apart: class 2 has 1 of the 12 .*--validation"):
        run(train=data)
    with pytest.raises(DataError, match=r"9 of the 500 .* would be .*; 10 classes need"):
        run(n_validation=9)


def test_a_threat_that_does_not_fit_the_data():
    with pytest.raises(ThreatError, match="larger than the whole input domain"):
        run(threat="linf:8")


def test_a_recipe_that_does_not_fit_the_threat():
    with pytest.raises(ThreatError, match="trains against one threat"):
        run(threat=["linf:0.1", "l2:0.5"])


def test_a_model_without_weights_to_train():
    frozen = small.mlp()
    frozen.requires_grad_(False)
    with pytest.raises(ModelError, match="all are frozen"):
        run(frozen)
    with pytest.raises(ModelError, match="nothing to train"):
        run(nn.Sequential(nn.Flatten()))
    with pytest.raises(ModelError, match=r"no torch\.nn\.Module"):
        harden(lambda x: x.flatten(1), small.digits(400), threat=small.THREAT, epochs=1)


def test_probabilities_are_refused_with_a_way_out():
    with pytest.raises(ModelError, match="leave out the softmax"):
        run(nn.Sequential(small.mlp(), nn.Softmax(1)))


def test_test_data_of_another_shape():
    data = small.digits(50)
    with pytest.raises(DataError, match=r"test inputs have shape \(1, 4, 8\), .*\(1, 8, 8\)"):
        run(test=ArrayData(data.x[:, :, :4], data.y))


def test_nan_in_the_data():
    for sample in (7, 399):  # in the first batch, which the model is tried on, and far behind
        data = small.digits(400)
        data.x[sample, 0, 0, 0] = torch.nan
        with pytest.raises(DataError, match=rf"Sample {sample} .*has NaN"):
            run(train=data)


def test_a_budget_too_small_for_one_epoch():
    many = small.digits()
    big = ArrayData(many.x.repeat(60, 1, 1, 1), many.y.repeat(60))
    with pytest.raises(PlanError, match=r"one pass over the .* takes .* Give at least"):
        harden(small.mlp(width=2000), big, threat=small.THREAT, budget="2s", audit=False)


def test_neither_budget_nor_epochs():
    with pytest.raises(PlanError, match="either a budget"):
        harden(small.mlp(), small.digits(400), threat=small.THREAT)


def test_an_unknown_setting_or_recipe():
    with pytest.raises(PlanError, match=r"Unknown setting 'batchsize'.*batch_size"):
        run(batchsize=3)
    with pytest.raises(PlanError, match=r"Unknown recipe 'trade'"):
        run(recipe="trade")


def test_a_full_disk_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    net = small.fitted(3)
    before = small.weights(net)

    def full(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(JournalError, match=r"disk of .* is full"):
        run(net, out=tmp_path)
    assert small.same(before, small.weights(net))
    assert net.training is False


def test_the_result_never_lies_over_the_users_file(tmp_path):
    from holdfast.hardening.saving import check_not_overwritten

    with pytest.raises(JournalError, match="would overwrite"):
        check_not_overwritten("m:f", str(tmp_path / "hardened.pt"), tmp_path)


def test_asking_twice_for_the_same_is_the_same_plan():
    asked = small.ask(small.mlp(), epochs=2.0)
    assert asked.budget == "2 epochs"
    assert replace(asked, epochs=None, seconds=60.0).budget == "60s"
